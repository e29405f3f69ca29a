"""Norms of gradients, where Lightning's users look for them."""

from leyden.utils.grads import grad_norm as grad_norm
