// Open a page in headless Chromium, wait until it shows every TEXT, save a picture of it, and print what was found.
// node page.cjs CHROMIUM URL PICTURE TEXT...
const { chromium } = require('playwright-core');

(async () => {
  const [executablePath, url, picture, ...texts] = process.argv.slice(2);
  const args = ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--disable-background-networking',
    '--disable-component-update', '--disable-sync', '--no-first-run'];
  const browser = await chromium.launch({ executablePath, args, timeout: 180000 });
  try {
    const page = await browser.newPage({ viewport: { width: 1280, height: 860 } });
    page.setDefaultTimeout(180000);
    await page.goto(url, { waitUntil: 'domcontentloaded' });
    for (const text of texts) {
      await page.getByText(text, { exact: true }).first().waitFor();
      console.log(`found ${text}`);
    }
    const close = page.locator('button[aria-label*="Close"]:visible');
    if (await close.count()) await close.first().click();  // the settings' pane: room for the curves
    await page.waitForTimeout(texts.length ? 3000 : 0);  // the curves are drawn after their titles
    await page.screenshot({ path: picture, fullPage: !texts.length });
  } finally {
    await browser.close();
  }
})().catch((error) => { console.error(String(error)); process.exit(1); });
