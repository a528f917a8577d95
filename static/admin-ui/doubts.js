// Ticking somebody means "only those ticked".
(() => {
  "use strict";
  document.addEventListener("change", (event) => {
    if (!event.target.matches("[data-tick]")) return;
    const some = document.querySelector("[data-tick]:checked") ? "chosen" : "all";
    document.querySelector(`[name="whom"][value="${some}"]`).checked = true;
  });
})();
