// What the page adds where scripts run: without them it holds all numbers, in a fixed order.
(() => {
  "use strict";

  const make = (name, attributes = {}, ...inside) => {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...inside);
    return element;
  };
  const all = (selector, place = document) => [...place.querySelectorAll(selector)];

  // ---- Tables: sorted by a column, filtered by a word.

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if (!cell) return null;
    const shown = cell.querySelector(".mean") || cell.querySelector(".label") || cell;
    const text = cell.dataset.value ?? shown.textContent.trim();
    if (text === "" || text === "–") return null;
    const number = Number(text.replace("−", "-").replace(/[,% ]/g, ""));
    return Number.isNaN(number) ? text : number;
  };

  const compare = (one, other) =>
    typeof one === "number" && typeof other === "number"
      ? one - other
      : String(one).localeCompare(String(other), undefined, { numeric: true });

  const sortable = (table) => {
    const body = table.tBodies[0];
    const original = [...body.rows];
    const heads = [...table.tHead.rows[0].cells];
    const choice = make("select", {});
    const sort = (column, direction) => {
      const fixed = original.filter((row) => row.classList.contains("floor"));
      const rows = original.filter((row) => !row.classList.contains("floor"));
      if (direction !== 0) {
        const known = rows.filter((row) => valueOf(row, column) !== null);
        const unknown = rows.filter((row) => valueOf(row, column) === null);
        known.sort((a, b) => direction * compare(valueOf(a, column), valueOf(b, column)));
        rows.splice(0, rows.length, ...known, ...unknown);
      }
      body.append(...rows, ...fixed);
      heads.forEach((head, place) => {
        if (place === column && direction !== 0)
          head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
        else head.removeAttribute("aria-sort");
      });
      choice.value = direction === 0 ? "" : `${column} ${direction}`;
    };
    heads.forEach((head, column) => {
      const button = make("button", { type: "button", class: "sort" }, ...head.childNodes);
      button.addEventListener("click", () => {
        const now = head.getAttribute("aria-sort");
        sort(column, now === "ascending" ? -1 : now === "descending" ? 0 : 1);
      });
      head.append(button);
    });
    choice.append(make("option", { value: "" }, "as it came"));
    heads.forEach((head, column) => {
      for (const [word, direction] of [["rising", 1], ["falling", -1]]) {
        const value = `${column} ${direction}`;
        choice.append(make("option", { value }, `${head.textContent.trim()}, ${word}`));
      }
    });
    choice.addEventListener("change", () => {
      const [column, direction] = choice.value.split(" ").map(Number);
      sort(column, direction || 0);
    });
    return make("label", { class: "sort-by" }, "Sort by ", choice);
  };

  const searchable = (table) => {
    const rows = [...table.tBodies[0].rows];
    const field = make("input", { type: "search" });
    const count = make("span", { class: "soft", role: "status" });
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      let left = 0;
      for (const row of rows) {
        const text = row.textContent.toLowerCase();
        const fits = words.every((word) => text.includes(word));
        row.classList.toggle("unmatched", !fits);
        left += fits;
      }
      count.textContent = words.length ? `${left} of ${rows.length} rows` : "";
    });
    return [make("label", {}, "Find ", field), count];
  };

  for (const table of all("table")) {
    // As blocks on a narrow screen a table would be none to a screen reader without these.
    table.setAttribute("role", "table");
    all("thead, tbody", table).forEach((part) => part.setAttribute("role", "rowgroup"));
    all("tr", table).forEach((row) => row.setAttribute("role", "row"));
    all("td", table).forEach((cell) => cell.setAttribute("role", "cell"));
    all("th", table).forEach((cell) => {
      const role = cell.scope.startsWith("col") ? "columnheader" : "rowheader";
      cell.setAttribute("role", role);
    });
    const simple = table.tHead && table.tHead.rows.length === 1 && table.tBodies.length === 1;
    if (!simple || "plain" in table.dataset || table.tBodies[0].rows.length < 2) continue;
    const tools = make("div", { class: "tools" }, sortable(table));
    if (table.tBodies[0].rows.length > 6) tools.append(...searchable(table));
    table.before(tools);
  }

  // ---- Methods: off and on, in the tables and figures of a section.

  for (const section of all("main section")) {
    const legends = all(".legend", section);
    if (!legends.length) continue;
    const show = (key, on) => {
      for (const part of all(`[data-method="${key}"]`, section)) {
        if (part.parentElement.classList.contains("legend")) part.querySelector("input").checked = on;
        else part.classList.toggle("off", !on);
      }
    };
    const table = section.querySelector("table");
    const first = legends[0].cloneNode(true);
    (table.previousElementSibling?.matches(".tools") ? table.previousElementSibling : table).before(first);
    for (const legend of [first, ...legends]) {
      legend.setAttribute("role", "group");
      legend.setAttribute("aria-label", "Methods that are shown");
      for (const entry of [...legend.children]) {
        const box = make("input", { type: "checkbox" });
        box.checked = true;
        const label = make("label", { "data-method": entry.dataset.method }, box, ...entry.childNodes);
        box.addEventListener("change", () => show(label.dataset.method, box.checked));
        entry.replaceWith(label);
      }
    }
  }

  // ---- Curves: the values at the pointer, or where the slider stands.

  for (const data of all("script.values")) {
    const panel = data.parentElement;
    const svg = panel.querySelector("svg");
    const values = JSON.parse(data.textContent);
    const last = values.at.length - 1;
    const slider = make("input", { type: "range", min: 0, max: last, step: 1, value: last });
    const place = make("span");
    // The slider says the same to a screen reader.
    const box = make("div", { class: "readout", hidden: "", "aria-hidden": "true" });
    const hair = document.createElementNS("http://www.w3.org/2000/svg", "line");
    hair.setAttribute("class", "hair");
    hair.setAttribute("y1", values.box[0]);
    hair.setAttribute("y2", values.box[1]);
    const rows = values.lines.map((line) => {
      const value = make("td");
      const row = make("tr", {}, make("th", { scope: "row" }, line.label), value);
      if (line.key) row.dataset.method = line.key;
      return [row, line, value];
    });
    const title = make("caption");
    box.replaceChildren(make("table", {}, title, make("tbody", {}, ...rows.map(([row]) => row))));
    const show = (index) => {
      const where = `${values.what} ${values.at[index]}`;
      slider.value = index;
      place.textContent = title.textContent = where;
      for (const [, line, value] of rows) value.textContent = line.values[index] ?? "–";
      const seen = rows.filter(([row]) => !row.classList.contains("off"));
      const words = seen.map(([, line]) => `${line.label} ${line.values[index] ?? "none"}`);
      slider.setAttribute("aria-valuetext", `${where}: ${words.join("; ")}`);
      hair.setAttribute("x1", values.x[index]);
      hair.setAttribute("x2", values.x[index]);
      const middle = (values.x[0] + values.x[last]) / 2;
      box.classList.toggle("left", values.x[index] > middle);
    };
    const open = (on) => {
      box.hidden = !on;
      if (on) svg.append(hair);
      else hair.remove();
    };
    svg.addEventListener("pointermove", (event) => {
      const matrix = svg.getScreenCTM();
      const x = (event.clientX - matrix.e) / matrix.a;
      let nearest = 0;
      values.x.forEach((one, index) => {
        if (Math.abs(one - x) < Math.abs(values.x[nearest] - x)) nearest = index;
      });
      show(nearest);
      open(true);
    });
    svg.addEventListener("pointerleave", () => open(document.activeElement === slider));
    slider.addEventListener("input", () => {
      show(Number(slider.value));
      open(true);
    });
    slider.addEventListener("focus", () => {
      show(Number(slider.value));
      open(true);
    });
    slider.addEventListener("blur", () => open(false));
    slider.addEventListener("keydown", (event) => {
      if (event.key === "Escape") open(false);
    });
    show(last);
    panel.append(make("label", { class: "slider" }, place, slider), box);
  }

  // ---- Texts to take away.

  for (const text of all("details.copies pre")) {
    const copy = make("button", { type: "button" }, "Copy");
    copy.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text.textContent);
        copy.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(text);
        copy.textContent = "Selected: copy it";
      }
    });
    text.before(copy);
    if (!text.dataset.file) continue;
    const save = make("button", { type: "button" }, "Save");
    save.addEventListener("click", () => {
      const address = URL.createObjectURL(new Blob([text.textContent]));
      make("a", { href: address, download: text.dataset.file }).click();
      URL.revokeObjectURL(address);
    });
    text.before(save);
  }
})();
