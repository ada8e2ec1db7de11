"use strict";

const value = (row, column) => {
  const text = row.cells[column].dataset.v;
  const number = Number(text);
  return text === "" ? null : Number.isNaN(number) ? text : number;
};

const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));

for (const table of document.querySelectorAll("table.leaderboard")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    head.querySelector("button").addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const direction = before === "descending" || (before === null && column === 0) ? 1 : -1;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", direction === 1 ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      rows.sort((left, right) => {
        const a = value(left, column);
        const b = value(right, column);
        if (a === null || b === null) return (a === null) - (b === null);
        return direction * compare(a, b);
      });
      table.tBodies[0].append(...rows);
    });
  });
}

const PAGE = 6;

for (const figure of document.querySelectorAll(".samples")) {
  const problems = [...figure.querySelectorAll(".problem")];
  const buttons = [...figure.querySelectorAll("[data-kind]")];
  const arm = figure.querySelector("select");
  const count = figure.querySelector("output");
  const more = figure.querySelector(".more");
  let kind = "";
  let shown = PAGE;

  const matches = (problem) => {
    const kinds = problem.dataset.kinds.split(" ");
    if (kind === "") return true;
    return arm.value === "" ? kinds.some((one) => one.startsWith(kind + "-")) : kinds.includes(kind + "-" + arm.value);
  };

  const update = () => {
    const found = problems.filter(matches);
    problems.forEach((problem) => (problem.hidden = true));
    found.slice(0, shown).forEach((problem) => (problem.hidden = false));
    count.textContent = Math.min(shown, found.length) + " of " + found.length;
    more.hidden = shown >= found.length;
    buttons.forEach((button) => button.setAttribute("aria-pressed", String(button.dataset.kind === kind)));
    arm.closest("label").hidden = kind === "";
  };

  buttons.forEach((button) =>
    button.addEventListener("click", () => {
      kind = button.dataset.kind;
      shown = PAGE;
      update();
    }),
  );
  arm.addEventListener("change", () => {
    shown = PAGE;
    update();
  });
  more.addEventListener("click", () => {
    shown += PAGE;
    update();
  });
  figure.querySelector(".controls").hidden = false;
  update();
}

const brief = (number) => {
  const [scale, suffix] = [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]].find(([least]) => Math.abs(number) >= least) ?? [1, ""];
  return Number((number / scale).toPrecision(3)) + suffix;
};

const points = (path) =>
  path.getAttribute("d").slice(1).split("L").map((pair) => pair.split(" ").map(Number));

const heightAt = (line, x) => {
  const next = line.findIndex((point) => point[0] >= x);
  if (next < 0 || (next === 0 && line[0][0] > x)) return null;
  if (next === 0) return line[0][1];
  const [[a, from], [b, to]] = [line[next - 1], line[next]];
  return a === b ? to : from + ((to - from) * (x - a)) / (b - a);
};

const entry = (path, number, unit) => {
  const row = document.createElement("div");
  const dot = document.createElement("i");
  const name = document.createElement("span");
  const text = document.createElement("b");
  dot.className = path.getAttribute("class");
  name.textContent = path.dataset.label;
  text.textContent = unit ? (100 * number).toFixed(1) + unit : brief(number);
  row.append(dot, name, text);
  return row;
};

for (const plot of document.querySelectorAll(".plot")) {
  const area = plot.querySelector(".area");
  plot.querySelectorAll(".names g").forEach((name, number) => {
    const own = [".line", ".stop"].map((kind) => area.querySelectorAll(kind)[number]).filter(Boolean);
    for (const [event, on] of [["pointerenter", true], ["pointerleave", false]]) {
      name.addEventListener(event, () => {
        area.classList.toggle("dim", on);
        own.forEach((one) => one.classList.toggle("picked", on));
      });
    }
  });
}

for (const area of document.querySelectorAll(".area[data-end]")) {
  const plot = area.closest(".plot");
  const tip = plot.querySelector(".tip");
  const cursor = plot.querySelector(".cursor");
  const { unit } = area.dataset;
  const [end, low, high] = ["end", "low", "high"].map((key) => Number(area.dataset[key]));
  let lines = null;

  area.addEventListener("pointermove", (event) => {
    lines ??= [...area.querySelectorAll(".line")].map((path) => [path, points(path)]);
    const box = area.getBoundingClientRect();
    const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
    const found = lines
      .map(([path, line]) => [path, heightAt(line, 1000 * share)])
      .filter(([, height]) => height !== null)
      .sort((a, b) => a[1] - b[1]);
    const head = document.createElement("header");
    head.textContent = brief(end * share) + " " + plot.querySelector(".x-name").textContent;
    tip.replaceChildren(
      head,
      ...found.map(([path, height]) => entry(path, low + (1 - height / 1000) * (high - low), unit)),
    );
    tip.hidden = false;
    const left = box.left - plot.getBoundingClientRect().left + share * box.width;
    const fits = left + 14 + tip.offsetWidth <= plot.clientWidth;
    tip.style.left = Math.max(0, fits ? left + 14 : left - 14 - tip.offsetWidth) + "px";
    for (const key of ["x1", "x2"]) cursor.setAttribute(key, 100 * share + "%");
    cursor.setAttribute("visibility", "visible");
  });
  area.addEventListener("pointerleave", () => {
    tip.hidden = true;
    cursor.setAttribute("visibility", "hidden");
  });
}

const cells = (text) => {
  const rows = [[]];
  let value = "";
  let quoted = false;
  for (let i = 0; i < text.length; i++) {
    const character = text[i];
    if (quoted && character === '"' && text[i + 1] === '"') value += text[++i];
    else if (character === '"') quoted = !quoted;
    else if (!quoted && (character === "," || character === "\n")) {
      rows.at(-1).push(value);
      value = "";
      if (character === "\n") rows.push([]);
    } else value += character;
  }
  return rows.filter((row) => row.length);
};

const tabulated = (text) => {
  const table = document.createElement("table");
  cells(text).forEach((row, number) => {
    const line = (number ? (table.tBodies[0] ?? table.createTBody()) : table.createTHead()).insertRow();
    for (const value of row) {
      const cell = document.createElement(number ? "td" : "th");
      cell.textContent = value;
      line.append(cell);
    }
  });
  return table;
};

for (const details of document.querySelectorAll("details.data")) {
  const button = details.querySelector(".download");
  const source = details.querySelector(".csv");
  button.hidden = false;
  button.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([source.textContent], { type: "text/csv" }));
    link.download = button.dataset.name;
    link.click();
    URL.revokeObjectURL(link.href);
  });
  details.addEventListener("toggle", () => {
    if (source.hidden) return;
    const frame = document.createElement("div");
    frame.className = "scroll";
    frame.tabIndex = 0;
    frame.append(tabulated(source.textContent));
    source.after(frame);
    source.hidden = true;
  });
}
