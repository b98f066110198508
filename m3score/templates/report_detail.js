
// ---- one picture, opened: runs behind report.js in the same script --------------------------------

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
  const second = make("div", {}, item.error ? null : facts(item), ...(item.error ? [] : item.judge === "vision" ? [kept(item)] : item.predicted ? [] : [agreement(item), answers(item)]));
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
