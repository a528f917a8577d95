// While a campaign goes out its report asks for newer figures. Without this file, loading the page again does the same.
(() => {
  "use strict";
  const EVERY_MS = 2000;
  const page = document.querySelector("[data-progress]");
  if (!page) return;
  const put = (element, text) => {
    if (element && element.textContent !== text) element.textContent = text;
  };

  async function ask() {
    if (document.hidden) return;
    const answer = await fetch(page.dataset.progress, { headers: { Accept: "application/json" } });
    if (!answer.ok || answer.redirected) return;
    const now = await answer.json();
    if (now.state !== page.dataset.state) {
      clearInterval(timer);
      window.location.reload(); // other buttons, links and charts
      return;
    }
    const bar = page.querySelector("[data-bar]");
    bar.max = now.audience || 1;
    bar.value = now.done;
    put(page.querySelector("[data-done]"), now.done.toLocaleString("en"));
    put(page.querySelector("[data-audience]"), now.audience.toLocaleString("en"));
    for (const [name, figure] of Object.entries(now.figures)) {
      const tile = page.querySelector(`[data-figure="${name}"]`);
      if (!tile) continue;
      put(tile.querySelector("[data-value]"), figure.value);
      put(tile.querySelector("[data-share]"), figure.share);
      if (figure.raw !== null) put(tile.querySelector("[data-raw]"), figure.raw);
    }
  }

  const timer = setInterval(() => ask().catch(() => {}), EVERY_MS); // a lost answer is made up for by the next
})();
