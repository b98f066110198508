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
