"""Where a module lives and how its processes talk to each other."""
