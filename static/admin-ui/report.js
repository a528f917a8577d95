// While a campaign may move by itself its report asks for newer figures. Without this file, loading the page again does
// the same. Numbers are put in place; whole parts are changed only when the campaign has come to another phase.
(() => {
  "use strict";
  const EVERY_MS = 2000;
  const page = document.querySelector("[data-progress]");
  if (!page) return;
  let leavesAt = 0;

  const put = (element, text) => {
    if (element && element.textContent !== text) element.textContent = text;
  };

  function countdown() {
    const seconds = page.querySelector("[data-countdown]");
    if (!seconds) return;
    const left = Math.max((leavesAt - performance.now()) / 1000, 0);
    put(seconds, String(Math.ceil(left)));
    const bar = page.querySelector("[data-hold]");
    if (bar) bar.value = left;
  }

  function holdUntil(seconds) {
    leavesAt = performance.now() + seconds * 1000;
    countdown();
  }

  function show(now) {
    if (now.is_elsewhere) {
      window.location.reload(); // somebody has undone it: its page is the composer again
      return;
    }
    for (const [name, html] of Object.entries(now.parts || {})) {
      page.querySelector(`[data-part="${name}"]`).innerHTML = html;
    }
    if (now.key !== page.dataset.key) page.dataset.key = now.key;
    if (now.leaves_in) holdUntil(now.leaves_in);
    const bar = page.querySelector("[data-bar]");
    if (bar) {
      bar.max = now.audience || 1;
      bar.value = now.done;
    }
    for (const [name, text] of Object.entries(now.words)) put(page.querySelector(`[data-word="${name}"]`), text);
    for (const [name, html] of Object.entries(now.tables)) {
      const table = page.querySelector(`[data-table="${name}"]`);
      if (table && table.dataset.shown !== html) {
        if (table.dataset.shown !== undefined || table.innerHTML.trim() !== html.trim()) table.innerHTML = html;
        table.dataset.shown = html;
      }
    }
    for (const [name, figure] of Object.entries(now.figures)) {
      const tile = page.querySelector(`[data-figure="${name}"]`);
      if (!tile) continue;
      put(tile.querySelector("[data-value]"), figure.value);
      put(tile.querySelector("[data-share]"), figure.share);
      if (figure.raw !== null) put(tile.querySelector("[data-raw]"), figure.raw);
    }
    if (now.state !== "scheduled") page.querySelector("[data-rest]").hidden = false;
    page.toggleAttribute("data-moving", now.is_moving);
  }

  async function ask() {
    if (document.hidden || !page.hasAttribute("data-moving")) return;
    const answer = await fetch(`${page.dataset.progress}?key=${page.dataset.key}`, {
      headers: { Accept: "application/json" },
    });
    if (!answer.ok || answer.redirected) return;
    show(await answer.json());
  }

  const first = page.querySelector("[data-countdown]");
  if (first) holdUntil(Number(first.dataset.countdown));
  setInterval(countdown, 250);
  setInterval(() => ask().catch(() => {}), EVERY_MS); // a lost answer is made up for by the next
})();
