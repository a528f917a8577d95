// Two comforts; the page works without them: new mail is noticed, and j and k walk through the list.
(() => {
  const total = Number(document.body.dataset.total);
  const fresh = document.querySelector(".fresh");

  async function look() {
    if (document.hidden) return;
    try {
      const answer = await fetch(document.body.dataset.count, { cache: "no-store" });
      const more = (await answer.json()).total - total;
      if (more > 0) {
        fresh.textContent = more === 1 ? "1 new mail" : `${more} new mails`;
        fresh.hidden = false;
      }
    } catch {
      // The server is restarting; the next look finds it.
    }
  }
  setInterval(look, 4000);

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, textarea")) return;
    if (event.key === "/") {
      event.preventDefault();
      document.getElementById("q").focus();
      return;
    }
    const step = { j: 1, k: -1 }[event.key];
    if (!step) return;
    const lines = [...document.querySelectorAll(".line")];
    const here = lines.findIndex((line) => line.getAttribute("aria-current"));
    const next = lines[here + step];
    if (next) next.click();
  });

  const current = document.querySelector(".line[aria-current]");
  if (current) current.scrollIntoView({ block: "nearest" });
})();
