// The page's own script: draws the plots, filters the samples, opens trajectories. Texts of models
// reach the document as text nodes only.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

function make(tag, text, cls) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (cls) node.className = cls;
  return node;
}

// ---- plots
const dark = matchMedia("(prefers-color-scheme: dark)");

function theme(forPrint) {
  const style = getComputedStyle(document.documentElement);
  const text = forPrint ? "#1c1f24" : style.getPropertyValue("--text").trim();
  const dim = forPrint ? "#5b6470" : style.getPropertyValue("--dim").trim();
  const line = forPrint ? "#d9dde3" : style.getPropertyValue("--line").trim();
  return {
    background: "transparent",
    font: "system-ui, sans-serif",
    axis: { labelColor: dim, titleColor: text, gridColor: line, domainColor: dim, tickColor: dim,
      labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal" },
    legend: { labelColor: text, titleColor: text, labelFontSize: 12 },
    view: { stroke: line },
  };
}

function draw(forPrint = false) {
  for (const place of document.querySelectorAll(".plot")) {
    const spec = { ...data.plots[place.dataset.plot], width: "container",
      autosize: { type: "fit-x", contains: "padding" } };
    vegaEmbed(place, spec, { renderer: "svg", ast: true, config: theme(forPrint),
      downloadFileName: place.dataset.plot,
      actions: { export: true, source: false, compiled: false, editor: false } })
      .catch((error) => { place.textContent = String(error); console.error(error); });
  }
}

const task = $("task-of-plot");
if (task) task.addEventListener("change", () => {
  const plot = task.closest("figure").querySelector(".plot");
  plot.dataset.plot = task.value;
  draw();
});
dark.addEventListener("change", () => draw());
addEventListener("beforeprint", () => draw(true));
addEventListener("afterprint", () => draw());
draw();

// ---- samples
const COLUMNS = ["arm", "sample", "epoch", "task", "length", "stop", "score", "usd", "seconds",
  "said"];
const FIGURES = new Set(["epoch", "length", "score", "usd", "seconds"]);
const PAGE = 200;
let sorted = { column: null, down: false };
let shown = PAGE;

function fill(select, values) {
  select.append(new Option("all", ""));
  for (const value of values) select.append(new Option(value, value));
}

function matching() {
  const [arm, task, stop, which] = ["arm", "task", "stop", "which"].map((id) => $(id).value);
  const words = $("words").value.toLowerCase();
  const rows = data.samples.filter((row) =>
    (!arm || row.arm === arm) && (!task || row.task === task) && (!stop || row.stop === stop)
    && (which === "" || (which === "failed" && row.score !== null && row.score < 1)
      || (which === "errored" && row.score === null) || (which === "right" && row.score === 1))
    && (!words || `${row.sample} ${row.said}`.toLowerCase().includes(words)));
  if (sorted.column) {
    const by = sorted.column, sign = sorted.down ? -1 : 1;
    const rank = (row) => row[by] === null ? -Infinity : row[by];
    rows.sort((a, b) => sign * (rank(a) < rank(b) ? -1 : rank(a) > rank(b) ? 1 : 0));
  }
  return rows;
}

function cell(row, column) {
  const value = row[column];
  if (value === null) return "-";
  if (column === "score") return value.toFixed(3);
  if (column === "usd") return value.toFixed(4);
  if (column === "seconds") return value.toFixed(1);
  if (column === "length") return value.toLocaleString("en");
  return String(value);
}

function line(row) {
  const tr = make("tr");
  for (const column of COLUMNS) {
    const td = make("td", undefined, FIGURES.has(column) ? "n" : column);
    if (column === "sample") {
      const button = make("button", row.sample);
      button.setAttribute("aria-expanded", "false");
      button.addEventListener("click", () => toggle(tr, button, row));
      td.append(button);
    } else {
      td.textContent = cell(row, column);
    }
    if (column === "score" && (row.score === null || row.score < 1)) td.classList.add("bad");
    tr.append(td);
  }
  return tr;
}

function show() {
  const rows = matching();
  $("rows").replaceChildren(...rows.slice(0, shown).map(line));
  $("count").textContent = `${rows.length} of ${data.samples.length}`;
  $("more").hidden = rows.length <= shown;
}

async function toggle(tr, button, row) {
  const open = button.getAttribute("aria-expanded") === "true";
  button.setAttribute("aria-expanded", String(!open));
  if (open) { tr.nextSibling.remove(); return; }
  const inside = make("td"), below = make("tr");
  inside.colSpan = COLUMNS.length;
  below.append(inside);
  tr.after(below);
  inside.append(await tree(row));
}

// ---- trajectories
async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed), (char) => char.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

async function tree(row) {
  const root = make("div", undefined, "tree");
  if (row.feedback) root.append(make("p", `scorer: ${row.feedback}`, "role"));
  const packed = data.trajectories[row.key];
  if (!packed) {
    root.append(make("p", `Not in this page: fleet-eval trace ${row.run} ${row.sample}`
      + (row.epoch ? ` --epoch ${row.epoch}` : "")));
    return root;
  }
  const found = await unpack(packed);
  if (found.query) root.append(make("div", "query", "role"), make("pre", found.query));
  for (const node of steps(found.steps || [])) root.append(node);
  root.append(make("div", "answer", "role"), make("pre", found.answer || "(none)"));
  return root;
}

function spent(part) {
  if (!part.usage) return "";
  const { calls, input_tokens, output_tokens, usd } = part.usage;
  return ` · ${part.seconds.toFixed(1)} s · ${calls} call${calls === 1 ? "" : "s"} ·`
    + ` ${(input_tokens + output_tokens).toLocaleString("en")} tokens · $${usd.toFixed(4)}`;
}

function steps(list) {
  return list.map((step, number) => {
    const node = make("div", undefined, "node");
    node.append(make("div", `turn ${number + 1}${spent(step)}`, "role"));
    if (!("code" in step)) {
      for (const [name, value] of Object.entries(step)) {
        const text = typeof value === "string" ? value : JSON.stringify(value, null, 1);
        node.append(make("div", name, "role"), make("pre", text));
      }
      return node;
    }
    if (step.reasoning) node.append(make("p", step.reasoning));
    node.append(make("pre", step.code));
    for (const query of step.queries || []) node.append(asked(query));
    node.append(make("div", "output", "role"), make("pre", step.output || "(nothing printed)"));
    return node;
  });
}

function asked(query) {
  const node = make("details", undefined, "node");
  const kinds = {
    llm: () => `sub-query, ${query.prompt_chars.toLocaleString("en")} characters`,
    rlm: () => `child on ${query.context_chars.toLocaleString("en")} characters, ${query.stop}`,
    tool: () => `tool ${query.name}`,
  };
  node.append(make("summary", (kinds[query.kind] || (() => query.kind))() + spent(query)));
  const texts = { query: query.query, prompt: query.prompt, arguments: query.arguments };
  for (const [name, text] of Object.entries(texts)) {
    if (text) node.append(make("div", name, "role"), make("pre", text));
  }
  if (query.steps) node.append(...steps(query.steps));
  const back = query.answer ?? query.reply ?? query.result;
  node.append(make("div", "gave", "role"), make("pre", back || query.error || "(nothing)"));
  return node;
}

for (const name of ["arm", "task", "stop"]) {
  fill($(name), [...new Set(data.samples.map((row) => row[name]))].sort());
}
for (const id of ["arm", "task", "stop", "which", "words"]) {
  $(id).addEventListener("input", () => { shown = PAGE; show(); });
}
$("more").addEventListener("click", () => { shown += PAGE; show(); });
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const column = button.dataset.column;
    sorted = { column, down: sorted.column === column && !sorted.down };
    show();
  });
}
show();
