// The composer's comforts: toolbar, shortcuts, live preview, "not saved yet". Everything else works without this file.
(() => {
  "use strict";
  const PREVIEW_DELAY_MS = 200;
  const form = document.querySelector("[data-composer]");
  if (!form) return;
  const source = form.querySelector("textarea.nl-source");
  const part = (name) => form.querySelector(`[data-${name}]`);

  // Live preview -------------------------------------------------------------------------------------------
  const frame = part("frame");
  let timer = 0;
  let newest = null; // the request whose answer may be shown

  function show(preview) {
    const problem = part("problem");
    problem.hidden = !preview.error;
    problem.textContent = preview.error || (preview.warnings || []).join(" ");
    if (preview.error) return; // the last good mail stays, below the sentence that says what is wrong
    problem.hidden = !(preview.warnings || []).length;
    problem.classList.toggle("nl-note-bad", false);
    problem.classList.toggle("nl-note-warning", true);
    part("inbox").hidden = false;
    part("empty").hidden = true;
    frame.hidden = false;
    part("sender").textContent = preview.sender;
    part("subject").textContent = preview.subject;
    part("preheader").textContent = preview.preheader;
    part("text").textContent = preview.text;
    if (frame.srcdoc !== preview.document) frame.srcdoc = preview.document;
  }

  function fail(sentence) {
    const problem = part("problem");
    problem.classList.add("nl-note-bad");
    problem.classList.remove("nl-note-warning");
    show({ error: sentence });
  }

  async function refresh() {
    if (newest) newest.abort();
    const request = (newest = new AbortController());
    try {
      const answer = await fetch(form.dataset.previewUrl, {
        method: "POST",
        body: new FormData(form),
        headers: { Accept: "application/json" },
        signal: request.signal,
      });
      if (!answer.ok || answer.redirected) throw new Error(String(answer.status));
      const preview = await answer.json();
      if (preview.error) fail(preview.error);
      else show(preview);
    } catch (error) {
      if (error.name !== "AbortError") fail("The preview could not be made just now. Your text is not lost.");
    } finally {
      if (newest === request) newest = null;
    }
  }

  function soon() {
    clearTimeout(timer);
    timer = setTimeout(refresh, PREVIEW_DELAY_MS);
  }

  // What is not saved yet ------------------------------------------------------------------------------------
  const contentOf = () => {
    const data = new FormData(form);
    ["csrfmiddlewaretoken", "test_addresses", "preview_as", "preview_dark", "loaded"].forEach((name) => data.delete(name));
    return JSON.stringify([...data]);
  };
  const saved = form.querySelector("[role=alert]") ? "" : contentOf();
  let leaving = false;
  const isUnsaved = () => contentOf() !== saved;
  form.addEventListener("input", (event) => {
    part("unsaved").hidden = !isUnsaved();
    if (event.target.name !== "test_addresses") soon();
  });
  // Past this the server would not even read the form, and the text would be lost with the page.
  form.addEventListener("submit", (event) => {
    if (new Blob([source.value]).size > Number(form.dataset.limit)) {
      event.preventDefault();
      event.stopImmediatePropagation();
      fail(form.dataset.tooLong);
      part("problem").scrollIntoView({ block: "center" });
      return;
    }
    leaving = true;
  });
  window.addEventListener("beforeunload", (event) => {
    if (!leaving && isUnsaved()) event.preventDefault();
  });
  if (part("frame").hidden && part("problem").hidden) refresh();

  // After saving, the cursor is where it was -------------------------------------------------------------------
  const key = `composer:${form.dataset.key}`;
  form.addEventListener("submit", () => {
    const place = [source.selectionStart, source.selectionEnd, source.scrollTop, source.offsetHeight, window.scrollY];
    sessionStorage.setItem(key, JSON.stringify(place));
  });
  const place = JSON.parse(sessionStorage.getItem(key) || "null");
  sessionStorage.removeItem(key);
  if (place) {
    source.style.height = `${place[3]}px`;
    source.setSelectionRange(place[0], place[1]);
    source.scrollTop = place[2];
    window.scrollTo(0, place[4]);
  }

  // Toolbar ----------------------------------------------------------------------------------------------------
  // execCommand keeps the browser's own undo; the fallback is for browsers that have dropped it.
  function insert(text, selectFrom, selectTo) {
    const start = source.selectionStart;
    source.focus();
    if (!document.execCommand("insertText", false, text)) {
      source.setRangeText(text, source.selectionStart, source.selectionEnd, "end");
      source.dispatchEvent(new Event("input", { bubbles: true }));
    }
    source.setSelectionRange(start + selectFrom, start + selectTo);
  }

  const selected = () => source.value.slice(source.selectionStart, source.selectionEnd);

  function wrap(before, placeholder, after) {
    const text = selected() || placeholder;
    insert(before + text + after, before.length, before.length + text.length);
  }

  function lines(prefix, placeholder) {
    const value = source.value;
    const start = value.lastIndexOf("\n", source.selectionStart - 1) + 1;
    let end = value.indexOf("\n", source.selectionEnd);
    if (end < 0) end = value.length;
    source.setSelectionRange(start, end);
    const text = (selected() || placeholder).replace(/^/gm, prefix);
    insert(text, text.length, text.length);
  }

  function block(text, from, to) {
    const before = source.value.slice(0, source.selectionStart);
    const lead = !before || before.endsWith("\n\n") ? "" : before.endsWith("\n") ? "\n" : "\n\n";
    insert(`${lead}${text}\n\n`, lead.length + from, lead.length + to);
  }

  const ADDRESS = "https://";
  const tools = {
    bold: () => wrap("**", "bold", "**"),
    italic: () => wrap("*", "italic", "*"),
    heading: () => lines("## ", "Heading"),
    list: () => lines("- ", "first"),
    quote: () => lines("> ", "quote"),
    divider: () => block("---", 3, 3),
    link() {
      const text = selected() || "text";
      insert(`[${text}](${ADDRESS})`, text.length + 3, text.length + 3 + ADDRESS.length);
    },
    image() {
      const alt = selected() || "what it shows";
      insert(`![${alt}](${ADDRESS})`, alt.length + 4, alt.length + 4 + ADDRESS.length);
    },
    button() {
      const text = selected() || "Read on";
      block(`[${text}](${ADDRESS} "button")`, 1, 1 + text.length);
    },
  };

  form.querySelectorAll("[data-toolbar], [data-needs-script]").forEach((element) => (element.hidden = false));
  form.querySelectorAll("[data-tool]").forEach((button) => {
    button.addEventListener("click", () => tools[button.dataset.tool]());
  });
  const merge = part("merge");
  if (merge)
    merge.addEventListener("change", () => {
      if (merge.value) insert(merge.value, merge.value.length, merge.value.length);
      merge.value = "";
    });

  const isMarkdown = () => new FormData(form).get("format") === "markdown";
  const shortcuts = { b: "bold", i: "italic", k: "link" };
  form.addEventListener("keydown", (event) => {
    if (!(event.ctrlKey || event.metaKey) || event.altKey || event.shiftKey) return;
    const pressed = event.key.toLowerCase();
    if (pressed === "s") {
      event.preventDefault();
      form.requestSubmit(form.querySelector("[name=_save], [name=_continue]"));
    } else if (event.target === source && merge && shortcuts[pressed] && isMarkdown()) {
      event.preventDefault();
      event.stopPropagation(); // the admin's own search listens to some of these
      tools[shortcuts[pressed]]();
    }
  });
  // Enter in a one-line field would press the form's first button; here it only leaves the field.
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.target.matches("input")) event.preventDefault();
  });

  // Preview as … ------------------------------------------------------------------------------------------------
  const reader = form.querySelector("#preview_as");
  if (reader)
    reader.addEventListener("input", async () => {
      const typed = reader.value.trim();
      if (typed.length < 2) return;
      const answer = await fetch(`${reader.dataset.people}?q=${encodeURIComponent(typed)}`);
      if (!answer.ok) return;
      const list = form.querySelector("#preview_people");
      const options = (await answer.json()).people.map(({ email, name }) => {
        const option = document.createElement("option");
        option.value = email;
        option.label = name;
        return option;
      });
      list.replaceChildren(...options);
    });
})();
