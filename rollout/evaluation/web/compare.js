"use strict";
// The comparison page: table of figures, pictures side by side, one enlarged at a time. Text from the data only ever
// becomes textContent or an attribute.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

const number = (value, sign) => (sign && value > 0 ? "+" : "") + Number(value.toPrecision(4));
const percent = (value) => (100 * value).toFixed(1) + " %";

function span(interval, show, kind) {
  if (kind === "set") return String(show(interval.mean)); // of all pictures together: no interval
  const bounds = interval.low === null ? "unknown" : `${show(interval.low)} … ${show(interval.high)}`;
  return `${show(interval.mean)}  (${bounds})`;
}

// A change whose interval leaves 0 out stands out.
const certain = (interval) => interval.low !== null && (interval.low > 0 || interval.high < 0);

function figureRows(name, metric) {
  return data.candidates.map((candidate, place) => {
    const entry = metric.candidates[candidate];
    const row = element("tr");
    if (place === 0) {
      row.append(element("th", { scope: "row", rowSpan: data.candidates.length, textContent: name }));
    }
    const change = entry.difference ? span(entry.difference, (v) => number(v, true), metric.kind) : "";
    row.append(
      element("td", { textContent: candidate }),
      element("td", { textContent: span(entry.mean, number, metric.kind) }),
      element("td", { textContent: change, className: entry.difference && certain(entry.difference) ? "certain" : "" }),
    );
    if (metric.kind === "score") row.append(element("td", { textContent: entry.win_rate ? span(entry.win_rate.interval, percent) : "" }));
    return row;
  });
}

function figureTable(metrics) {
  const head = element("tr");
  const wins = metrics[0][1].kind === "score" ? ["Win rate"] : [];
  for (const text of ["Metric", "Model", "Mean", "Change from base", ...wins]) {
    head.append(element("th", { scope: "col", textContent: text }));
  }
  const body = element("tbody", {}, ...metrics.flatMap(([name, metric]) => figureRows(name, metric)));
  return element("div", { className: "scroll", tabIndex: 0 }, element("table", {}, element("thead", {}, head), body));
}

// Statistics of a set have no interval: of them nobody can say it.
function changedBeyondChance(metrics) {
  const known = metrics.filter(([, metric]) => metric.kind !== "set");
  if (known.length === 0 || data.candidates.length === 1) return "";
  const moved = known.filter(([, metric]) => data.candidates.slice(1).some((c) => certain(metric.candidates[c].difference)));
  const among = known.length < metrics.length ? ` of ${known.length} with intervals` : "";
  return `, ${moved.length}${among} changed beyond chance`;
}

// Scores in view; measures by their first word (judge, appearance, diversity), folded where they would hide the pictures.
function showFigures() {
  const all = Object.entries(data.metrics);
  const scores = all.filter(([, metric]) => metric.kind === "score");
  if (scores.length > 0) byId("metrics").append(figureTable(scores));
  const groups = new Map();
  for (const pair of all.filter(([, metric]) => metric.kind !== "score")) {
    const group = pair[0].split("/")[0];
    groups.set(group, [...(groups.get(group) ?? []), pair]);
  }
  for (const [group, metrics] of groups) {
    const summary = `${group} (${metrics.length})` + changedBeyondChance(metrics);
    byId("metrics").append(
      element("details", { open: all.length <= 12 }, element("summary", { textContent: summary }), figureTable(metrics)),
    );
  }
}

function showNotes() {
  for (const text of data.notes) {
    const warning = text.startsWith("warning: ");
    byId("notes").append(element("p", { className: warning ? "warning" : "faint", textContent: text }));
  }
}

const altText = (picture, candidate) => `${candidate}: ${picture.prompt}`;

function pictureElement(picture, candidate) {
  const image = element("img", { src: picture.images[candidate], alt: altText(picture, candidate), loading: "lazy" });
  image.addEventListener("load", () => image.classList.toggle("small", image.naturalWidth <= 256));
  return image;
}

function card(picture) {
  const row = element("div", { className: "row" });
  for (const candidate of data.candidates) {
    const open = element("button", { type: "button" }, pictureElement(picture, candidate));
    open.addEventListener("click", () => zoomTo(shown.indexOf(picture), data.candidates.indexOf(candidate)));
    const scores = Object.values(picture.scores[candidate]).map((value) => number(value)).join(" · ");
    row.append(element("figure", {}, open, element("figcaption", {}, candidate, element("div", { className: "faint", textContent: scores }))));
  }
  const prompt = element("p", { className: "prompt" }, picture.prompt + " ", element("span", { className: "faint", textContent: `seed ${picture.seed}` }));
  return element("li", {}, prompt, row);
}

let shown = [];

function showPictures() {
  const wanted = byId("filter").value.trim().toLowerCase();
  shown = data.pictures.filter((picture) => picture.prompt.toLowerCase().includes(wanted));
  const [score, candidate, sign] = JSON.parse(byId("order").value);
  if (score !== null) {
    const gain = (picture) => picture.scores[candidate][score] - picture.scores[data.candidates[0]][score];
    shown.sort((a, b) => sign * (gain(a) - gain(b)));
  }
  byId("pictures").replaceChildren(...shown.map(card));
  byId("count").textContent = `${shown.length} of ${data.total} pictures a model`;
}

function offerOrders() {
  const order = byId("order");
  const offer = (label, value) => order.append(element("option", { textContent: label, value: JSON.stringify(value) }));
  offer("as sampled", [null, null, 0]);
  for (const [name, metric] of Object.entries(data.metrics)) {
    if (metric.kind !== "score") continue;
    for (const candidate of data.candidates.slice(1)) {
      offer(`${candidate} gains most: ${name}`, [name, candidate, -1]);
      offer(`${candidate} loses most: ${name}`, [name, candidate, 1]);
    }
  }
}

// Enlarged: the same place on the screen for every model, so that a difference shows as the picture changes.
const zoom = { picture: 0, candidate: 0, scale: 1 };

function drawZoom() {
  const picture = shown[zoom.picture];
  const candidate = data.candidates[zoom.candidate];
  const image = byId("zoom-image");
  image.src = picture.images[candidate];
  image.alt = altText(picture, candidate);
  byId("zoom-title").textContent = candidate;
  byId("zoom-prompt").textContent = picture.prompt;
  image.decode().then(() => {
    image.classList.toggle("small", image.naturalWidth <= 256);
    image.style.width = `${image.naturalWidth * zoom.scale}px`;
    byId("zoom-scale").textContent = `${zoom.scale}×`;
  });
}

function zoomTo(picture, candidate) {
  Object.assign(zoom, { picture, candidate });
  const probe = new Image();
  probe.src = shown[picture].images[data.candidates[candidate]];
  probe.decode().then(() => {
    zoom.scale = Math.max(1, Math.floor((0.65 * window.innerHeight) / probe.naturalHeight));
    byId("zoom").showModal();
    drawZoom();
  });
}

const around = (value, step, length) => (value + step + length) % length;

function rescale(factor) {
  zoom.scale = Math.min(32, Math.max(0.25, zoom.scale * factor));
  drawZoom();
}

byId("zoom").addEventListener("keydown", (event) => {
  const steps = {
    ArrowLeft: () => { zoom.candidate = around(zoom.candidate, -1, data.candidates.length); drawZoom(); },
    ArrowRight: () => { zoom.candidate = around(zoom.candidate, 1, data.candidates.length); drawZoom(); },
    ArrowUp: () => { zoom.picture = around(zoom.picture, -1, shown.length); drawZoom(); },
    ArrowDown: () => { zoom.picture = around(zoom.picture, 1, shown.length); drawZoom(); },
    "+": () => rescale(2),
    "=": () => rescale(2),
    "-": () => rescale(0.5),
  };
  if (!(event.key in steps)) return;
  event.preventDefault();
  steps[event.key]();
});
byId("zoom-in").addEventListener("click", () => rescale(2));
byId("zoom-out").addEventListener("click", () => rescale(0.5));
byId("zoom-close").addEventListener("click", () => byId("zoom").close());

document.documentElement.style.setProperty("--card-width", `${10 * data.candidates.length}rem`);
showNotes();
showFigures();
offerOrders();
byId("order").addEventListener("change", showPictures);
byId("filter").addEventListener("input", showPictures);
showPictures();
