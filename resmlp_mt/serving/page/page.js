// The page of the server: translates while one types, and shows how each sentence was translated.

const PAUSE = 250; // milliseconds without a key before a request
const ALTERNATIVES = 3;

const element = (id) => document.getElementById(id);
const source = element("source");
const target = element("target");
const from = element("source-language");
const to = element("target-language");

let languages = [];
let detected = null; // where the language is not chosen
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
    detected = answer.detectedLanguage?.language ?? null;
    show(answer.segments.filter(({ translations }) => translations.length));
    const seconds = ((performance.now() - began) / 1000).toFixed(2);
    say(detected === to.value ? "The text is in this language already." : `Translated in ${seconds} seconds.`);
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
  if (sentences.length) matrix(0, 1); // tells how many layers there are
}

function sentence({ text, words, translations }) {
  const [best, ...others] = translations;
  const item = make("li");
  const original = row("original", source.lang, "Source", words.map(({ text }) => text), true);
  const translation = row("translation", to.value, "Translation", best.words);
  item.append(original, translation);
  if (best.attention.length) {
    connect(original, translation, words, best.attention);
  } else if (best.words.length) {
    const reason = "This model is ONNX graphs, which do not show the attention between words.";
    item.append(make("p", { textContent: reason }));
  }
  item.append(make("p", { className: "score", textContent: `Score ${best.score.toFixed(2)}` }));
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

// A line of words; one of them is in the order of the Tab key, the arrow keys go to the others.
function row(name, lang, label, words, hasBars = false) {
  const line = make("div", { className: `words ${name}`, lang });
  line.setAttribute("role", "toolbar");
  line.setAttribute("aria-label", label);
  words.forEach((word, index) => {
    const button = make("button", { type: "button", className: "word" });
    if (hasBars) button.append(make("span", { className: "bar", ariaHidden: "true" }));
    button.append(word);
    button.tabIndex = index ? -1 : 0;
    line.append(button);
  });
  line.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const buttons = [...line.children];
    const next = buttons[buttons.indexOf(document.activeElement) + step];
    if (!step || !next) return;
    event.preventDefault();
    document.activeElement.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });
  return line;
}

// Pointing at a word colours the words of the other side by the attention between them.
function connect(original, translation, words, attention) {
  const sides = [
    [original, translation, (index) => attention.map((weights) => weights[index])],
    [translation, original, (index) => attention[index]],
  ];
  for (const [own, other, weightsOf] of sides) {
    [...own.children].forEach((word, index) => {
      const choose = () => {
        forget();
        word.classList.add("chosen");
        const weights = weightsOf(index);
        const most = Math.max(...weights, 1e-9);
        [...other.children].forEach((there, i) =>
          there.style.setProperty("--weight", (weights[i] / most) * Math.min(1, most * 2)),
        );
        read(word, other, weights);
        if (own === original) mix(original, words, index);
      };
      word.addEventListener("pointerenter", choose);
      word.addEventListener("focus", choose);
      word.addEventListener("pointerleave", forget);
      word.addEventListener("blur", forget);
    });
  }
}

function forget() {
  for (const word of document.querySelectorAll(".word")) {
    word.classList.remove("chosen");
    word.style.removeProperty("--weight");
    word.firstElementChild?.style.removeProperty("--mixing");
  }
}

// The same for those who do not see colours.
function read(word, other, weights) {
  const shares = [...other.children].map((there, i) => [there.textContent, weights[i]]);
  shares.sort(([, one], [, two]) => two - one);
  const told = shares.slice(0, 3).map(([text, weight]) => `${text} ${Math.round(100 * weight)} %`);
  element("reading").textContent = `${word.textContent}: ${told.join(", ")}`;
}

// The row of the mixing matrix that makes a word's positions, as bars over the source.
async function mix(original, words, index) {
  const length = words.at(-1).end + 1; // with end-of-sentence
  const rows = await matrix(element("layer").value || 0, length);
  if (!rows || !original.children[index].classList.contains("chosen")) return;
  const { begin, end } = words[index];
  const weights = words.map((word) => {
    let sum = 0;
    for (let i = begin; i < end; i++) {
      for (let j = word.begin; j < word.end; j++) sum += rows[i][j];
    }
    return sum / (end - begin);
  });
  const most = Math.max(...weights.map(Math.abs), 1e-9);
  weights.forEach((weight, i) => {
    const bar = original.children[i].firstElementChild;
    bar.style.setProperty("--mixing", Math.abs(weight) / most);
    bar.classList.toggle("minus", weight < 0);
  });
}

const matrices = new Map();

async function matrix(layer, length) {
  const language = from.value === "auto" ? detected : from.value;
  const query = new URLSearchParams({ source: language, target: to.value, layer, length });
  const path = `mixing?${query}`;
  if (!matrices.has(path)) {
    // the page does without one that is refused, and asks again at the next word
    matrices.set(path, ask(path).catch(() => matrices.delete(path) && null));
  }
  const found = await matrices.get(path);
  if (!found) return null;
  const select = element("layer");
  if (select.options.length !== found.layers) {
    const layers = Array.from({ length: found.layers }, (_, i) => ({ code: i, name: `${i + 1}` }));
    fill(select, layers, Number(layer));
  }
  return found.matrix;
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
