"use strict";
// Blind voting: one pair at a time, three questions, progress in localStorage, votes saved as a JSON file.
// The text of the prompt stays hidden until the questions about looks are answered.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const STORE = `atelier-votes:${data.study}`;
const ANSWERS = ["left", "tie", "right"];
const QUESTIONS = Object.keys(data.questions);
const NEEDS_PROMPT = "alignment";

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

let warning = ""; // stands before the count of answers

function restored() {
  try {
    const stored = JSON.parse(localStorage.getItem(STORE));
    if (stored && typeof stored.answers === "object") return stored;
  } catch (error) {
    warning = "Answers kept earlier could not be read; starting anew. ";
  }
  return { voter: "", place: 0, answers: {} };
}

const state = restored();

function keep() {
  try {
    localStorage.setItem(STORE, JSON.stringify(state));
  } catch (error) {
    warning = "This browser keeps nothing; save to a file before closing the page. ";
  }
}

const pair = () => data.pairs[state.place];
const answersOf = (id) => state.answers[id] ?? {};
const complete = (id) => QUESTIONS.every((question) => question in answersOf(id));
const promptVisible = (id) => QUESTIONS.filter((q) => q !== NEEDS_PROMPT).every((q) => q in answersOf(id));
const askable = (id, question) => question !== NEEDS_PROMPT || promptVisible(id);
const current = (id) => QUESTIONS.find((question) => !(question in answersOf(id)) && askable(id, question));

function answer(question, value) {
  if (!askable(pair().id, question)) return;
  state.answers[pair().id] = { ...answersOf(pair().id), [question]: value };
  keep();
  draw();
}

function go(step) {
  state.place = Math.min(data.pairs.length - 1, Math.max(0, state.place + step));
  keep();
  draw();
}

function questionElement(question) {
  const legend = element("legend", { textContent: data.questions[question] });
  const box = element("fieldset", { id: `question-${question}` }, legend);
  if (question === NEEDS_PROMPT) box.append(element("p", { id: "prompt", className: "prompt", style: "flex-basis: 100%" }));
  for (const value of ANSWERS) {
    const input = element("input", { type: "radio", name: question, value, id: `${question}-${value}` });
    input.addEventListener("change", () => answer(question, value));
    box.append(element("label", { className: "answer" }, input, value));
  }
  return box;
}

function draw() {
  const { id, prompt } = pair();
  for (const side of ["left", "right"]) {
    const image = byId(side);
    if (image.getAttribute("src") !== pair()[side]) image.src = pair()[side];
  }
  byId("place").textContent = `Pair ${state.place + 1} of ${data.pairs.length}`;
  for (const question of QUESTIONS) {
    const box = byId(`question-${question}`);
    box.disabled = !askable(id, question);
    box.classList.toggle("current", current(id) === question);
    for (const value of ANSWERS) byId(`${question}-${value}`).checked = answersOf(id)[question] === value;
  }
  byId("prompt").textContent = promptVisible(id) ? prompt : "The text appears once the questions above are answered.";
  byId("previous").disabled = state.place === 0;
  byId("next").disabled = state.place === data.pairs.length - 1;
  const done = data.pairs.filter((each) => complete(each.id)).length;
  Object.assign(byId("progress"), { value: done, max: data.pairs.length });
  byId("status").textContent = `${warning}${done} of ${data.pairs.length} pairs answered`;
}

function votes() {
  const answered = data.pairs.filter((each) => Object.keys(answersOf(each.id)).length > 0);
  return {
    format: data.format,
    version: data.version,
    study: data.study,
    voter: state.voter.trim(),
    saved_at: new Date().toISOString(),
    votes: Object.fromEntries(answered.map((each) => [each.id, answersOf(each.id)])),
  };
}

function save() {
  if (!state.voter.trim()) {
    byId("status").textContent = "Please give your name first: it keeps your votes apart from others'.";
    byId("voter").focus();
    return;
  }
  const url = URL.createObjectURL(new Blob([JSON.stringify(votes(), null, 2) + "\n"], { type: "application/json" }));
  const name = `votes-${state.voter.trim().replace(/[^\p{L}\p{N}._-]+/gu, "-")}.json`;
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
  byId("status").textContent = `Saved as ${name}`;
}

for (const image of [byId("left"), byId("right"), byId("zoom-image")]) {
  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth <= 256));
}
for (const button of document.querySelectorAll(".duel button")) {
  button.addEventListener("click", () => {
    const image = byId("zoom-image");
    image.src = pair()[button.dataset.side];
    image.alt = `The ${button.dataset.side} picture, enlarged`;
    image.style.height = "82vh";
    byId("zoom").showModal();
  });
}
byId("zoom-close").addEventListener("click", () => byId("zoom").close());

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input[type=text]");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || byId("zoom").open) return;
  const question = current(pair().id);
  if ("123".includes(event.key) && question) answer(question, ANSWERS[Number(event.key) - 1]);
  else if (event.key === "n") go(1);
  else if (event.key === "p") go(-1);
});

byId("questions").append(...QUESTIONS.map(questionElement));
byId("questions").addEventListener("submit", (event) => event.preventDefault());
byId("voter").value = state.voter;
byId("voter").addEventListener("input", (event) => { state.voter = event.target.value; keep(); });
byId("save").addEventListener("click", save);
byId("next").addEventListener("click", () => go(1));
byId("previous").addEventListener("click", () => go(-1));
draw();
