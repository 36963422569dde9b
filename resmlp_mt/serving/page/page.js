// The page of the server: translates while one types, and shows how each sentence was translated.

const PAUSE = 250; // milliseconds without a key before a request
const ALTERNATIVES = 3;

const element = (id) => document.getElementById(id);
const source = element("source");
const target = element("target");
const from = element("source-language");
const to = element("target-language");

let languages = [];
let timer = null;
let request = null; // of what is being translated; a new one takes its place

function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function say(text, isError = false) {
  const status = element("status");
  status.textContent = text;
  status.classList.toggle("error", isError);
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer.");
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error);
  return answer;
}

function fill(select, choices, chosen) {
  select.replaceChildren(
    ...choices.map(({ code, name }) => make("option", { value: code, textContent: name })),
  );
  select.value = choices.some(({ code }) => code === chosen) ? chosen : choices[0]?.code;
}

function fillTargets(chosen) {
  const known = languages.filter(({ code }) => from.value === "auto" || code === from.value);
  const codes = new Set(known.flatMap(({ targets }) => targets));
  fill(to, languages.filter(({ code }) => codes.has(code)), chosen);
  source.lang = from.value === "auto" ? "" : from.value;
  target.lang = to.value;
}

async function start() {
  const settings = await ask("frontend/settings");
  languages = await ask("languages");
  const sources = languages.filter(({ targets }) => targets.length);
  const automatic = sources.length > 1 ? [{ code: "auto", name: "Detect the language" }] : [];
  fill(from, [...automatic, ...sources], settings.language.source.code);
  fillTargets(settings.language.target.code);
  source.maxLength = settings.charLimit;
  if (source.value) translate(); // what the browser kept of an earlier visit
}

async function translate() {
  clearTimeout(timer);
  request?.abort(); // the server drops it from its queue
  request = null;
  if (!source.value.trim()) {
    target.value = "";
    element("details").hidden = true;
    say("");
    return;
  }
  const mine = (request = new AbortController());
  const began = performance.now();
  say("Translating …");
  try {
    const answer = await ask("explain", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({
        q: source.value,
        source: from.value,
        target: to.value,
        alternatives: 0,
      }),
      signal: mine.signal,
    });
    if (mine !== request) return;
    target.value = answer.translatedText;
    show(answer.segments.filter(({ translations }) => translations.length));
    say(`Translated in ${((performance.now() - began) / 1000).toFixed(2)} seconds.`);
  } catch (error) {
    if (mine !== request || error.name === "AbortError") return;
    target.value = "";
    element("details").hidden = true;
    say(error.message, true);
  }
}

function show(sentences) {
  element("details").hidden = !sentences.length;
  element("sentences").replaceChildren(...sentences.map(sentence));
}

function sentence({ text, translations }) {
  const [best, ...others] = translations;
  const item = make(
    "li",
    {},
    make("p", { className: "words original", lang: source.lang, textContent: text }),
    make("p", { className: "words translation", lang: to.value, textContent: best.text }),
    make("p", { className: "score", textContent: `Score ${best.score.toFixed(2)}` }),
  );
  if (others.length) {
    const list = make("ul", { className: "alternatives", lang: to.value });
    for (const other of others.slice(0, ALTERNATIVES)) {
      const score = make("span", { className: "score", textContent: other.score.toFixed(2) });
      list.append(make("li", {}, other.text, " ", score));
    }
    item.append(make("p", { textContent: "Alternatives" }), list);
  }
  return item;
}

source.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(translate, PAUSE);
});
from.addEventListener("change", () => {
  fillTargets(to.value);
  translate();
});
to.addEventListener("change", () => {
  target.lang = to.value;
  translate();
});
element("form").addEventListener("submit", (event) => event.preventDefault());
element("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(target.value);
  } catch {
    target.select(); // the clipboard is closed to pages without a certificate
    document.execCommand("copy");
  }
  say("Copied.");
});

start().catch((error) => say(error.message, true));
