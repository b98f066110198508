"use strict";
// Everything from the tables reaches the page as text or as attributes, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const AT_ONCE = 60; // tiles made before the next ones are needed

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "text", "circle", "g"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}
const number = (value, digits) => value.toLocaleString("en", { maximumFractionDigits: digits, minimumFractionDigits: digits });
const count = (many, what) => `${number(many, 0)} ${what}${many === 1 ? "" : "s"}`;
const nameOf = (path) => path.split("/").pop() || path;

// ---- theme and the bars that are drawn already ----------------------------------------------------

byId("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
});
for (const bar of document.querySelectorAll(".bar")) {
  bar.querySelector(".fill").style.width = `${100 * bar.dataset.width}%`;
  bar.addEventListener("click", () => {
    byId("filters").reset();
    byId("show").value = bar.dataset.show;
    refresh();
    byId("pictures").scrollIntoView();
    byId("show").focus({ preventScroll: true });
  });
}

// ---- tiles ----------------------------------------------------------------------------------------

// The leading number: what it is depends on what judged the picture.
const tokens = (value) => number(value, value < 9.95 && value % 1 ? 1 : 0);
function lead(item) {
  if (item.solved === false) return ["unsolved", ""];
  if (item.judge === "vision") return [tokens(item.effective), item.effective === 1 ? "effective token" : "effective tokens"];
  if (item.needed === null) return [number(item.complexity, 2), "complexity"];
  return [tokens(item.needed), `${item.needed === 1 ? "token" : "tokens"} ${item.predicted ? "predicted" : "needed"}`];
}
// Its length as a bar: tokens on a logarithmic scale.
function length(item) {
  const plain = item.judge === "vision" || item.needed === null || !(data.finest > 1);
  return plain ? item.complexity : Math.log(item.needed) / Math.log(data.finest);
}

function tile(item, list) {
  const frame = make("span", { class: "frame" });
  if (item.thumbnail) {
    frame.append(make("img", { src: `data:image/webp;base64,${item.thumbnail}`, alt: "", decoding: "async", loading: "lazy" }));
  } else {
    frame.append(make("span", { class: "none" }, item.error || item.missing || "no picture"));
  }
  const button = make("button", { type: "button", class: item.error ? "tile failed" : "tile", tabindex: "-1" }, frame);
  if (item.error) {
    button.setAttribute("aria-label", `${item.path}: ${item.error}`);
  } else {
    const meter = make("span", {}), [value, name] = lead(item);
    meter.style.width = item.solved === false ? 0 : `${100 * length(item)}%`;
    button.append(
      make("span", { class: "facts" }, make("b", item.solved === false ? { class: "never" } : {}, value), make("span", {}, name)),
      make("span", { class: "meter" }, meter));
    const words = item.solved === false ? value : `${value} ${name}`;
    button.setAttribute("aria-label", `${nameOf(item.path)}: ${words}`);
  }
  button.append(make("span", { class: "file" }, nameOf(item.path)));
  button.title = item.path;
  button.addEventListener("click", () => openDetail(list, item, button));
  return make("li", {}, button);
}

class Gallery {
  // A list of tiles, made as they are scrolled to. One of them takes part in tabbing; arrows move on.
  constructor(host) {
    this.host = host;
    this.items = [];
    this.made = 0;
    host.addEventListener("keydown", (event) => this.move(event));
    host.addEventListener("focusin", (event) => this.mark(event.target));
  }
  set(items) {
    this.items = items;
    this.made = 0;
    this.host.replaceChildren();
    this.grow();
    if (!items.length) this.host.append(make("li", { class: "empty" }, data.pictures.length || byId("show").value ? "No picture is like that. Widen the filters." : data.failed.length ? "No picture has a score; what went wrong is listed below." : "The table is empty."));
  }
  grow(until = this.made + AT_ONCE) {
    const next = this.items.slice(this.made, until);
    this.host.append(...next.map((item) => tile(item, this.items)));
    if (!this.made && next.length) this.host.querySelector(".tile").tabIndex = 0;
    this.made += next.length;
    return next.length;
  }
  tiles() { return [...this.host.querySelectorAll(".tile")]; }
  mark(target) {
    for (const one of this.host.querySelectorAll('.tile[tabindex="0"]')) one.tabIndex = -1;
    if (target.matches(".tile")) target.tabIndex = 0;
  }
  focus(index) {
    if (index >= this.made) this.grow(index + AT_ONCE);
    this.tiles()[Math.max(0, Math.min(index, this.items.length - 1))]?.focus();
  }
  move(event) {
    const tiles = this.tiles(), here = tiles.indexOf(document.activeElement);
    if (here < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    const top = (one) => one.parentElement.offsetTop;
    const across = Math.max(1, tiles.findIndex((one) => top(one) > top(tiles[0])));
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across, Home: -here, End: this.items.length };
    if (!(event.key in steps)) return;
    event.preventDefault();
    const there = here + steps[event.key];
    if (event.key === "End" || (there >= 0 && there < this.items.length)) this.focus(there);
  }
}

const gallery = new Gallery(byId("gallery"));
new IntersectionObserver((entries) => {
  if (entries.some((entry) => entry.isIntersecting)) while (gallery.grow() && byId("more").getBoundingClientRect().top < innerHeight + 600);
}, { rootMargin: "600px" }).observe(byId("more"));

const SHOWS = {
  "": (item) => item.solved !== false,
  unsolved: (item) => item.solved === false,
  odd: (item) => item.monotone === false,
};
for (const strip of document.querySelectorAll("[data-strip]")) {
  const chosen = new Gallery(strip), kept = data.pictures.filter(SHOWS[strip.dataset.strip]);
  chosen.set(kept);
  strip.addEventListener("scroll", () => {
    if (strip.scrollLeft + 2 * strip.clientWidth > strip.scrollWidth) chosen.grow();
  }, { passive: true });
}

// ---- filters --------------------------------------------------------------------------------------

function refresh() {
  const show = byId("show").value, folder = byId("folder").value, text = byId("text").value.toLowerCase();
  const bound = (id, otherwise) => (Number.isFinite(byId(id).valueAsNumber) ? byId(id).valueAsNumber : otherwise);
  const least = bound("least", 0), most = bound("most", 1);
  const failed = show === "error";
  const shown = SHOWS[show] || ((item) => item.solved !== false && String(item.needed) === show);
  const kept = (failed ? data.failed : data.pictures).filter((item) =>
    (folder === "*" || item.folder === folder) && (!text || item.path.toLowerCase().includes(text)) &&
    (failed || (shown(item) && item.complexity >= least && item.complexity <= most)));
  const order = byId("order").value;
  if (order === "complex") kept.reverse();
  if (order === "path") kept.sort((a, b) => (a.path < b.path ? -1 : a.path > b.path ? 1 : 0));
  gallery.set(kept);
  const apart = show === "unsolved" || show === "odd"; // groups of their own
  const all = failed ? data.failed.length : apart ? data.pictures.filter(shown).length : data.pictures.filter(SHOWS[""]).length;
  const whole = failed || apart ? data.totals.show[show] : data.totals.scored;
  const kind = failed ? "input" : "picture", sampled = all < whole;
  const alone = show && folder === "*" && !text && (failed || (least <= 0 && most >= 1));
  let said = `${count(all, kind)}.`;
  if (kept.length < all) said = `${number(kept.length, 0)} of ${sampled ? "the " : ""}${number(all, 0)} ${sampled ? (failed ? "listed inputs" : "shown pictures") : all === 1 ? kind : `${kind}s`}.`;
  else if (sampled && failed) said = `The first ${number(all, 0)} of ${count(whole, kind)} that failed.`;
  else if (sampled) said = `${number(all, 0)} of ${count(whole, kind)}, drawn evenly over the scores.`;
  if (sampled && alone && !failed && !apart) said += ` In the whole table: ${count(data.totals.show[show], "picture")} like that.`;
  byId("status").textContent = said;
}
byId("filters").addEventListener("input", refresh);
byId("filters").addEventListener("reset", () => setTimeout(refresh));
byId("filters").addEventListener("submit", (event) => event.preventDefault());

// ---- charts ---------------------------------------------------------------------------------------

function chart(label, ticks, series, options = {}) {
  // series: {points: [[tokens, share]], style, dots, line}; the axis of tokens is logarithmic.
  const wide = options.wide || Math.min(540, innerWidth - 40), high = options.high || 300;
  const left = 44, right = 18, top = 12, bottom = 46;
  const first = Math.log(ticks[0]), last = Math.log(ticks[ticks.length - 1]);
  const x = (tokens) => left + (last > first ? (Math.log(Math.max(tokens, ticks[0])) - first) / (last - first) : 0.5) * (wide - left - right);
  const high_share = options.most || 1;
  const y = (share) => high - bottom - (share / high_share) * (high - top - bottom);
  const picture = make("svg", { class: "chart", viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": label });
  for (let i = 0; i <= 4; i++) {
    const share = (i / 4) * high_share;
    picture.append(make("line", { class: "grid", x1: left, x2: wide - right, y1: y(share), y2: y(share) }),
      make("text", { x: left - 8, y: y(share) + 4, "text-anchor": "end" }, options.percent ? `${number(100 * share, 0)}%` : number(share, 2)));
  }
  for (const tick of ticks) picture.append(make("text", { x: x(tick), y: high - bottom + 20, "text-anchor": "middle" }, number(tick, 0)));
  picture.append(make("text", { x: (left + wide - right) / 2, y: high - 6, "text-anchor": "middle" }, options.axis || "visual tokens per grid"));
  if (options.need) picture.append(make("line", { class: "need", x1: x(options.need), x2: x(options.need), y1: top, y2: high - bottom }));
  for (const one of series) {
    const path = one.points.map(([tokens, share], i) => `${i ? "L" : "M"}${x(tokens).toFixed(1)} ${y(share).toFixed(1)}`).join("");
    if (one.line !== false) picture.append(make("path", { d: path, class: one.style }));
    if (one.dots) {
      for (const [tokens, share] of one.points) {
        const dot = make("circle", { cx: x(tokens), cy: y(share), r: one.dots, class: one.style });
        picture.append(dot);
      }
    }
  }
  return picture;
}
const legend = (...entries) => make("div", { class: "legend" }, ...entries.map(([style, words]) => make("span", {}, make("span", { class: `key ${style}` }), words)));

if (data.curves) {
  const { fixed, oracle, router } = data.curves;
  const series = [{ points: fixed, style: "s0", dots: 5 }];
  if (router) series.push({ points: router.points, style: "s1" });
  series.push({ points: [oracle], style: "s2", dots: 7, line: false });
  const highest = Math.max(oracle[1], ...fixed.map((point) => point[1]));
  const most = [0.2, 0.4, 0.6, 0.8, 1].find((share) => highest <= share) || 1;
  byId("frontier").append(
    chart("Accuracy against mean visual tokens; the numbers are in the table", data.ladder, series, { percent: true, most, axis: "mean visual tokens per grid", wide: Math.max(300, byId("frontier").clientWidth - 44), high: innerWidth < 820 ? 300 : 380 }),
    legend(["k0", "one scale for all"], ...(router ? [["k1", "router"]] : []), ["kdot", "oracle"]));
}

// ---- one picture ----------------------------------------------------------------------------------

const dialog = byId("detail");
let current = null; // {list, index, opener}

function openDetail(list, item, opener) {
  current = { list, index: list.indexOf(item), opener };
  fill();
  dialog.showModal();
  byId("close").focus();
}
function step(by) {
  const index = current.index + by;
  if (index < 0 || index >= current.list.length) return;
  current.index = index;
  fill();
}
byId("previous").addEventListener("click", () => step(-1));
byId("next").addEventListener("click", () => step(1));
byId("close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("close", () => { current?.opener.focus(); current = null; });
dialog.addEventListener("keydown", (event) => {
  if (event.target.matches("input") || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});

function fill() {
  const item = current.list[current.index];
  byId("detail-h").textContent = nameOf(item.path);
  byId("previous").disabled = current.index === 0;
  byId("next").disabled = current.index === current.list.length - 1;
  const size = item.width ? ` · ${item.width} × ${item.height} pixels` : "";
  const first = make("div", {}, item.error ? make("p", { class: "bad" }, item.error) : view(item), make("p", { class: "where" }, item.path + size));
  const second = make("div", {}, item.error ? null : facts(item), ...(item.error ? [] : item.judge === "vision" ? [kept(item)] : [agreement(item), answers(item)]));
  byId("detail-body").replaceChildren(first, second);
  dialog.scrollTop = 0;
}

function facts(item) {
  const line = make("dl", { class: "facts-line" });
  const add = (name, value) => line.append(make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  const [value, name] = lead(item), notes = [];
  if (item.solved === false) {
    add("unsolved", "—");
    notes.push("Unsolved: no scale gives right answers to all questions. The model does not know; that is not complexity.");
  } else {
    if (name !== "complexity") add(name, value);
    if (item.judge === "vision") {
      add("distinct tokens", tokens(item.distinct));
      add("tokens to read", tokens(item.reading));
      if (item.needed !== null) add("scale that holds them", number(item.needed, 0));
      notes.push(`Text: ${item.letters}. ` + (item.reading > item.distinct
        ? "Reading takes more tokens than the picture has distinct ones, so reading counts."
        : "Distinct tokens are more than it takes to read, so they count."));
    }
    add("complexity", number(item.complexity, 3));
    notes.push(`Complexity: ${data.complexity}.`);
  }
  if (item.rank) add("rank", number(item.rank, 0));
  if (item.monotone === false) notes.push("Not monotone: fewer tokens were enough where more were not.");
  return make("div", { class: "facts-part" }, line, ...notes.map((text) => make("p", { class: "note" }, text)));
}

function view(item) {
  if (!item.thumbnail) return make("p", { class: "note" }, item.missing || "No picture.");
  const frame = make("div", { class: "view" });
  const image = make("img", { src: `data:image/webp;base64,${item.thumbnail}`, alt: nameOf(item.path) });
  frame.append(image);
  if (item.width) {
    frame.style.aspectRatio = `${item.width} / ${item.height}`;
    frame.style.maxWidth = `min(100%, calc(60vh * ${item.width / item.height}))`;
  }
  const parts = make("div", {}, frame);
  if (item.map) parts.append(item.map.where ? where(item, frame) : heat(item, frame));
  return parts;
}

function laid({ grid, box }, frame, cell) {
  const canvas = make("canvas", { width: grid * cell, height: grid * cell, hidden: true, "aria-hidden": "true" });
  canvas.style.left = `${100 * box[0]}%`;
  canvas.style.top = `${100 * box[1]}%`;
  canvas.style.width = `${100 * (box[2] - box[0])}%`;
  canvas.style.height = `${100 * (box[3] - box[1])}%`;
  frame.append(canvas);
  return canvas;
}

function where(item, frame) {
  const { grid, top } = item.map, canvas = laid(item.map, frame, 1); // the browser smoothes what it enlarges
  canvas.classList.add("smooth");
  paint(canvas, grid, item.map.where, 1);
  const said = make("p", { class: "note" }, "little ", make("span", { class: "ramp", "aria-hidden": "true" }),
    `much. Where the complexity is: the brightest colour stands for ${number(top, 2)} or more of the ${tokens(item.effective)} effective ${item.effective === 1 ? "token" : "tokens"} in one patch.`);
  const choose = (on) => { frame.classList.toggle("where", on); canvas.hidden = !on; said.hidden = !on; };
  const choices = make("fieldset", { class: "choices" }, make("legend", {}, "Show"));
  for (const [words, on] of [["where the complexity is", true], ["picture", false]]) {
    const radio = make("input", { type: "radio", name: "map", checked: on });
    radio.addEventListener("change", () => choose(on));
    choices.append(make("label", {}, radio, words));
  }
  choose(true);
  return make("div", {}, choices, said);
}

function heat(item, frame) {
  const { grid, scales, mean } = item.map;
  const canvas = laid(item.map, frame, 20);
  const said = make("p", { class: "note", role: "status" }, "");
  const choose = (tokens) => {
    frame.classList.toggle("heated", Boolean(tokens));
    canvas.hidden = !tokens;
    if (tokens) paint(canvas, grid, scales[tokens], Number(tokens));
    said.replaceChildren();
    if (tokens) said.append("little ", make("span", { class: "ramp", "aria-hidden": "true" }), `much. With ${count(Number(tokens), "token")}, a patch lies ${number(100 * mean[tokens], 0)}% of a feature’s length from what stands for it, on average.`);
  };
  const choices = make("fieldset", { class: "choices" }, make("legend", {}, "Detail that pooling loses, with so many tokens:"));
  for (const tokens of ["", ...Object.keys(scales)]) {
    const radio = make("input", { type: "radio", name: "map", value: tokens, checked: tokens === "" });
    radio.addEventListener("change", () => choose(tokens));
    choices.append(make("label", {}, radio, tokens ? number(Number(tokens), 0) : "picture"));
  }
  return make("div", {}, choices, said);
}

function paint(canvas, grid, digits, tokens) {
  const brush = canvas.getContext("2d"), cell = canvas.width / grid;
  brush.clearRect(0, 0, canvas.width, canvas.height);
  const stops = [[90, 30, 20, 0], [150, 45, 25, 0.4], [240, 122, 19, 0.7], [255, 228, 94, 0.88]];
  for (let i = 0; i < digits.length; i++) {
    const value = (parseInt(digits[i], 16) / 15) * 3, low = Math.min(2, Math.floor(value)), part = value - low;
    const mix = stops[low].map((from, k) => from + (stops[low + 1][k] - from) * part);
    brush.fillStyle = `rgba(${mix[0]}, ${mix[1]}, ${mix[2]}, ${mix[3]})`;
    brush.fillRect((i % grid) * cell, Math.floor(i / grid) * cell, cell, cell);
  }
  const side = Math.round(Math.sqrt(tokens)), window_ = Math.floor(grid / side);
  brush.strokeStyle = "rgba(255, 255, 255, .45)";
  for (let i = 1; i < side; i++) {
    brush.beginPath();
    brush.moveTo(i * window_ * cell, 0); brush.lineTo(i * window_ * cell, canvas.height);
    brush.moveTo(0, i * window_ * cell); brush.lineTo(canvas.width, i * window_ * cell);
    brush.stroke();
  }
}

function kept(item) {
  if (!item.kept || data.ladder.length !== item.kept.length || item.kept.includes(null)) return null;
  const points = data.ladder.map((scale, i) => [scale, item.kept[i]]);
  return make("section", {}, make("h3", {}, "What each scale keeps"),
    chart(`Kept: ${points.map(([scale, share]) => `${number(share, 2)} at ${scale}`).join(", ")}`, data.ladder, [{ points, style: "s0", dots: 4 }], { high: 230, need: item.needed, percent: true }),
    legend(["k0", "share of the features’ variance that is left after pooling"], ["mean-key", "scale that holds the effective tokens"]));
}

function agreement(item) {
  if (!item.agreement.length) return null;
  const points = (values) => data.ladder.map((tokens, i) => [tokens, values[i]]);
  const series = item.questions.length > 1 ? item.questions.map((asked) => ({
    points: asked.scales.filter((scale) => scale.agreement !== null).map((scale) => [scale.tokens, scale.agreement]).reverse(), style: "thin" })) : [];
  series.push({ points: points(item.agreement), style: "s0", dots: 4 });
  const words = data.ladder.map((tokens, i) => `${number(item.agreement[i], 2)} at ${tokens}`).join(", ");
  return make("section", {}, make("h3", {}, "Agreement with the finest scale"),
    chart(`Agreement: ${words}`, data.ladder, series, { high: 230, need: item.solved === false ? null : item.needed }),
    legend(["k0", series.length > 1 ? "mean" : "agreement"], ...(series.length > 1 ? [["kthin", "each question"]] : []), ...(item.needed && item.solved !== false ? [["mean-key", "tokens needed"]] : [])));
}

function answers(item) {
  const part = make("section", {}, make("h3", {}, "Answers at every scale"));
  if (!item.questions.length) {
    part.append(make("p", { class: "note" }, data.hasAnswers ? "The trace table has none of this picture." : "They come with the trace table: m3score report --traces FILE."));
  }
  if (!item.questions.length) return part;
  const scales = item.questions[0].scales.map((scale) => scale.tokens);
  const table = make("table", { class: "answers" }, make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "tokens"),
    ...scales.map((tokens) => make("th", { scope: "col" }, number(tokens, 0))))));
  for (const asked of item.questions) {
    const at = new Map(asked.scales.map((scale) => [scale.tokens, scale]));
    const row = (name, cell) => make("tr", {}, make("th", { scope: "row" }, name),
      ...scales.map((tokens) => make("td", {}, at.has(tokens) ? cell(at.get(tokens)) : "")));
    table.append(make("tbody", {},
      make("tr", {}, make("th", { scope: "rowgroup", colspan: scales.length + 1, class: "asked" }, asked.question,
        asked.known ? make("span", {}, `Right: ${asked.references.join(" | ") || "known"}`) : null)),
      row("answer", (scale) => scale.answer || "(nothing)"),
      row(asked.known ? "right" : `as with ${number(scales[0], 0)}`, (scale) => make("span", { class: scale.good ? "tick yes" : "tick no" },
        make("span", { "aria-hidden": "true" }, scale.good ? "✓" : "✗"), make("span", { class: "hidden" }, scale.good ? "yes" : "no"))),
      row("agreement", (scale) => scale.agreement === null ? "" : number(scale.agreement, 2))));
  }
  part.append(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Answers" }, table));
  return part;
}

refresh();
