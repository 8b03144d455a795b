// Sorting, filters, comparison and theme. Every page can be read without it; it asks nothing of any machine.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    node.append(...children);
    return node;
  };

  // The state of the page lives in its address: #?task=digits&sort=0.2.down. Other fragments stay anchors.
  const state = () => new URLSearchParams(location.hash.startsWith("#?") ? location.hash.slice(2) : "");
  const keep = (change) => {
    const now = state();
    change(now);
    const text = now.toString();
    history.replaceState(null, "", text ? `#?${text}` : location.pathname + location.search);
  };

  // ---- Theme

  const themes = ["system", "light", "dark"];
  const stored = () => {
    try { return localStorage.getItem("theme"); } catch { return null; }
  };
  const dress = (theme) => {
    if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
  };
  dress(stored());
  const themed = make("button", { type: "button", class: "theme" });
  const name = () => {
    const now = document.documentElement.dataset.theme ?? "system";
    themed.textContent = { system: "◐", light: "○", dark: "●" }[now];
    themed.title = `Theme: ${now}`;
    themed.setAttribute("aria-label", `Theme: ${now}. Change it`);
  };
  name();
  themed.addEventListener("click", () => {
    const next = themes[(themes.indexOf(document.documentElement.dataset.theme ?? "system") + 1) % 3];
    dress(next);
    try { localStorage.setItem("theme", next); } catch { /* a page from disk may have no storage */ }
    name();
  });
  document.querySelector("header.site .second ul")?.append(make("li", {}, themed));

  // ---- Sorting

  const valueOf = (row, column) => {
    const cell = row.cells[column];
    if (!cell) return null;
    if (cell.dataset.v !== undefined) return cell.dataset.v;
    return cell.classList.contains("num") ? null : cell.textContent.trim();
  };
  const compare = (a, b, kind) => {
    if (kind === "text") return a.localeCompare(b, "en", { numeric: true });
    return Number(a) - Number(b);
  };
  const sortTable = (table, column, direction) => {
    const heads = [...table.tHead.rows[0].cells];
    const kind = heads[column].dataset.sort === "text" ? "text" : "number";
    const body = table.tBodies[0];
    const rows = [...body.rows];
    const order = new Map(rows.map((row) => [row, Number(row.dataset.at)]));
    rows.sort((a, b) => {
      const [x, y] = [valueOf(a, column), valueOf(b, column)];
      // What is not known stays below, whichever way the others go.
      if (x === null || y === null) return (x === null) - (y === null) || order.get(a) - order.get(b);
      const found = compare(x, y, kind);
      return (direction === "down" ? -found : found) || order.get(a) - order.get(b);
    });
    body.append(...rows);
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[column].setAttribute("aria-sort", direction === "down" ? "descending" : "ascending");
  };
  const sortables = all("table.sortable");
  sortables.forEach((table, number) => {
    [...table.tBodies[0].rows].forEach((row, at) => { row.dataset.at = at; });
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const first = head.dataset.sort;
      if (!first) return;
      const link = head.querySelector("a");
      const button = make("button", { type: "button" });
      if (link) {
        button.setAttribute("aria-label", `Sort by ${head.textContent.trim()}`);
        head.append(button);
      } else {
        button.append(...head.childNodes);
        head.append(button);
      }
      button.addEventListener("click", () => {
        const start = first === "down" ? "down" : "up";
        const now = head.getAttribute("aria-sort");
        const other = start === "down" ? "up" : "down";
        const was = now === null ? null : now === "descending" ? "down" : "up";
        const direction = was === start ? other : start;
        sortTable(table, column, direction);
        keep((it) => it.set("sort", `${number}.${column}.${direction}`));
      });
    });
  });

  // ---- Ranks, as benchmark and tables make them: a leader, those not told from it, and on

  const holm = (tests) => {
    const order = tests.map((_, i) => i).sort((a, b) => tests[a][2] - tests[b][2]);
    const adjusted = new Array(tests.length);
    let most = 0;
    order.forEach((at, i) => {
      most = Math.max(most, tests[at][2] * (tests.length - i));
      adjusted[at] = Math.min(1, most);
    });
    return adjusted;
  };
  const alikeIn = (table, rows) => {
    const shown = new Set(rows.map((row) => Number(row.dataset.entry)));
    if (table.dataset.tests) {
      const tests = JSON.parse(table.dataset.tests).filter(([a, b]) => shown.has(a) && shown.has(b));
      const p = holm(tests);
      const apart = new Set(tests.filter((_, i) => p[i] < 0.05).map(([a, b]) => `${Math.min(a, b)} ${Math.max(a, b)}`));
      return (a, b) => {
        const [x, y] = [Number(a.dataset.entry), Number(b.dataset.entry)];
        return !apart.has(`${Math.min(x, y)} ${Math.max(x, y)}`);
      };
    }
    return (a, b) => {
      const [x, y] = [a.dataset, b.dataset];
      if (x.lo === undefined || y.lo === undefined) return x.score === y.score;
      return Number(x.lo) <= Number(y.hi) && Number(y.lo) <= Number(x.hi);
    };
  };
  const rerank = (table, filtered) => {
    const sign = table.dataset.better === "lower" ? 1 : -1;
    const rows = [...table.tBodies[0].rows]
      .filter((row) => row.dataset.ranked !== undefined && !row.hidden)
      .sort((a, b) => sign * (Number(a.dataset.score) - Number(b.dataset.score)) || Number(a.dataset.at) - Number(b.dataset.at));
    const alike = alikeIn(table, rows);
    const groups = [];
    for (const row of rows) {
      const group = groups.at(-1);
      if (group && alike(group[0], row)) group.push(row);
      else groups.push([row]);
    }
    let rank = 1;
    for (const group of groups) {
      for (const row of group) {
        const cell = row.querySelector(".rank");
        cell.dataset.v = rank;
        cell.querySelector(".place").textContent = rank;
        const tied = cell.querySelector(".tied");
        if (tied) tied.textContent = group.length > 1 ? "tied" : "";
        const could = cell.querySelector(".could");
        if (could) could.hidden = filtered; // the intervals of ranks are those among all entries
      }
      rank += group.length;
    }
  };

  // ---- Filters

  const LABELS = {
    task: "Task", vector: "Vector", knowledge: "Knowledge", norm: "Norm", family: "Acts on", trust: "Trust", gate: "Gate",
  };
  const PLACE = new Set(["task", "vector", "knowledge", "norm"]);
  const bars = all(".filters");
  const main = document.querySelector("main");
  if (!bars.length && document.querySelector("table.matrix")) {
    const bar = make("div", { class: "filters", "data-by": "family trust gate" });
    document.querySelector("table.matrix").closest(".scroll").before(bar);
    bars.push(bar);
  }
  const marked = (by) => all(`[data-${by}]`, main).filter((node) => !node.closest(".filters"));
  const apply = (bar) => {
    const wanted = Object.fromEntries(all("select", bar).map((one) => [one.name, one.value]));
    const on = Object.entries(wanted).filter(([, value]) => value);
    const entries = new Set();
    for (const [by] of Object.entries(wanted)) for (const node of marked(by)) entries.add(node);
    let shown = 0;
    for (const node of entries) {
      node.hidden = on.some(([by, value]) => node.dataset[by] !== undefined && node.dataset[by] !== value);
      if (!node.hidden) shown += 1;
    }
    const byEntry = on.some(([by]) => !PLACE.has(by));
    for (const table of all("table[data-better]", main)) rerank(table, byEntry);
    for (const block of all("section.vector, article.card", main)) {
      const rows = all("tbody > tr", block);
      const empty = rows.length > 0 && rows.every((row) => row.hidden);
      if (block.matches("section.vector")) block.hidden = empty;
      else if (empty) block.hidden = true;
    }
    const status = bar.querySelector("output");
    status.textContent = on.length ? `${shown} of ${entries.size} shown${byEntry ? "; ranks are among these" : ""}` : "";
    bar.querySelector(".clear").hidden = !on.length;
  };
  for (const bar of bars) {
    const by = bar.dataset.by.split(" ");
    const selects = [];
    for (const one of by) {
      const values = [...new Set(marked(one).map((node) => node.dataset[one]).filter(Boolean))].sort();
      if (values.length < 2) continue;
      const select = make("select", { name: one }, make("option", { value: "" }, "all"),
        ...values.map((value) => make("option", { value }, value)));
      select.addEventListener("change", () => {
        keep((it) => { if (select.value) it.set(one, select.value); else it.delete(one); });
        apply(bar);
      });
      selects.push(select);
      bar.append(make("label", {}, LABELS[one] ?? one, select));
    }
    if (!selects.length) continue;
    const clear = make("button", { type: "button", class: "clear", hidden: "" }, "Show all");
    clear.addEventListener("click", () => {
      for (const select of selects) select.value = "";
      keep((it) => { for (const select of selects) it.delete(select.name); });
      apply(bar);
    });
    bar.append(clear, make("output", { "aria-live": "polite" }));
  }

  // ---- Comparison of entries on the same examples

  const logFactorial = [0];
  const logF = (n) => {
    for (let i = logFactorial.length; i <= n; i += 1) logFactorial.push(logFactorial[i - 1] + Math.log(i));
    return logFactorial[n];
  };
  const mcnemar = (a, b) => {
    const n = a + b;
    let sum = 0;
    for (let k = 0; k <= Math.min(a, b); k += 1) sum += Math.exp(logF(n) - logF(k) - logF(n - k) - n * Math.LN2);
    return n ? Math.min(1, 2 * sum) : 1;
  };
  const unpack = (text, length) => {
    const bytes = atob(text);
    return Array.from({ length }, (_, i) => (bytes.charCodeAt(i >> 3) >> (7 - (i & 7))) & 1);
  };
  const numbers = (text) => text.split(" ").filter(Boolean).flatMap((run) => {
    const [lo, hi = lo] = run.split("-").map(Number);
    return Array.from({ length: hi - lo + 1 }, (_, i) => lo + i);
  });
  const percent = (value) => `${(100 * value).toFixed(1)}%`;
  const picker = document.getElementById("picker");
  const compared = document.getElementById("compared");
  if (picker && compared) {
    const parts = Object.fromEntries(Object.entries(JSON.parse(compared.dataset.parts)).map(([part, ids]) => [part, numbers(ids)]));
    const entries = all("tbody tr", compared).map((row) => ({
      name: row.dataset.name, slug: row.dataset.slug, score: Number(row.dataset.score),
      lo: row.dataset.lo === undefined ? null : Number(row.dataset.lo),
      hi: row.dataset.hi === undefined ? null : Number(row.dataset.hi),
      held: JSON.parse(row.dataset.held),
    }));
    const share = ["share", "area"].includes(picker.dataset.unit);
    const shown = (value) => (picker.dataset.unit === "share" ? percent(value) : value.toFixed(3));
    const result = document.getElementById("comparison");
    const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(100 * value).toFixed(1)}`;
    const cell = (text, kind = "td", attributes = {}) => make(kind, attributes, text);
    const table = (caption, heads, rows) => make("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" },
      make("table", { class: "compact" }, make("caption", {}, make("span", {}, caption)),
        make("thead", {}, make("tr", {}, ...heads.map(([text, number]) => cell(text, "th", { scope: "col", class: number ? "num" : "name" })))),
        make("tbody", {}, ...rows.map((row) => make("tr", {}, ...row.map((text, i) =>
          (i === 0 ? cell(text, "th", { scope: "row", class: "name" }) : cell(text, "td", { class: heads[i][1] ? "num" : "" }))))))));
    const lists = (a, b) => {
      const only = [[a, b, []], [b, a, []]];
      for (const [part, ids] of Object.entries(parts)) {
        if (!(part in a.held) || !(part in b.held)) continue;
        for (const [x, y, found] of only) {
          const [held, other] = [unpack(x.held[part], ids.length), unpack(y.held[part], ids.length)];
          const mine = ids.filter((_, i) => held[i] && !other[i]);
          if (mine.length) found.push([part, mine]);
        }
      }
      return only;
    };
    const render = (chosen) => {
      result.replaceChildren();
      if (chosen.length < 2) {
        result.append(make("p", { class: "muted" }, "Choose two entries or more."));
        return;
      }
      result.append(make("h2", {}, "The chosen"));
      result.append(table(`${picker.dataset.score}, with 95% limits.`, [["Defense"], [picker.dataset.score, 1], ["95% limits", 1]],
        chosen.map((one) => [one.name, shown(one.score), one.lo === null ? "" : `${shown(one.lo)} to ${shown(one.hi)}`])));
      const pairs = [];
      chosen.forEach((a, i) => chosen.slice(i + 1).forEach((b) => {
        let [onlyA, onlyB, both, n] = [0, 0, 0, 0];
        for (const [part, ids] of Object.entries(parts)) {
          if (!(part in a.held) || !(part in b.held)) continue;
          const [x, y] = [unpack(a.held[part], ids.length), unpack(b.held[part], ids.length)];
          x.forEach((held, k) => { onlyA += held && !y[k]; onlyB += !held && y[k]; both += held && y[k]; });
          n += ids.length;
        }
        pairs.push({ a, b, onlyA, onlyB, both, n, p: mcnemar(onlyA, onlyB) });
      }));
      const paired = pairs.filter((pair) => pair.n > 0);
      const adjusted = holm(paired.map((pair) => [0, 0, pair.p]));
      if (paired.length) {
        result.append(table("Held on the same examples. p is McNemar's exact test, with Holm's correction over these pairs.",
          [["First and second"], ["Examples", 1], ["First", 1], ["Second", 1], ["Difference, points", 1], ["Only first", 1], ["Only second", 1], ["p", 1], ["Told apart"]],
          paired.map((pair, i) => [
            `${pair.a.name} and ${pair.b.name}`, String(pair.n), percent((pair.both + pair.onlyA) / pair.n), percent((pair.both + pair.onlyB) / pair.n),
            signed((pair.onlyA - pair.onlyB) / pair.n), String(pair.onlyA), String(pair.onlyB),
            adjusted[i] < 0.001 ? "< 0.001" : adjusted[i].toFixed(3), adjusted[i] < 0.05 ? "yes" : "no",
          ])));
        for (const pair of paired.slice(0, 3)) {
          for (const [x, y, found] of lists(pair.a, pair.b)) {
            const total = found.reduce((sum, [, ids]) => sum + ids.length, 0);
            result.append(make("details", { class: "part" }, make("summary", {}, `Only ${x.name} holds, and ${y.name} does not: ${total}`),
              make("ul", { class: "ids", tabindex: "0" }, ...found.map(([part, ids]) => make("li", {}, `${part}: ${ids.join(", ")}`)))));
          }
        }
      } else if (share) {
        result.append(table("Differences of the scores, and whether the intervals overlap.", [["First and second"], ["Difference, points", 1], ["Intervals"]],
          pairs.map(({ a, b }) => [`${a.name} and ${b.name}`, signed(a.score - b.score),
            a.lo === null || b.lo === null ? "unknown" : a.lo <= b.hi && b.lo <= a.hi ? "overlap" : "do not overlap"])));
      }
    };
    const boxes = entries.map((entry, i) => make("input", { type: "checkbox", value: entry.slug, id: `c${i}` }));
    const chosen = () => entries.filter((_, i) => boxes[i].checked);
    const change = () => {
      keep((it) => { const slugs = chosen().map((one) => one.slug).join(" "); if (slugs) it.set("with", slugs); else it.delete("with"); });
      render(chosen());
    };
    boxes.forEach((box) => box.addEventListener("change", change));
    picker.append(make("fieldset", {}, make("legend", {}, "Compare"),
      ...entries.map((entry, i) => make("label", { for: `c${i}` }, boxes[i], entry.name))));
    picker.restore = () => {
      const wanted = (state().get("with") ?? "").split(" ").filter(Boolean);
      const start = wanted.length ? wanted : entries.slice(0, 2).map((one) => one.slug);
      boxes.forEach((box) => { box.checked = start.includes(box.value); });
      render(chosen());
    };
  }

  // ---- What the address says

  const restore = () => {
    const now = state();
    for (const bar of bars) {
      const selects = all("select", bar);
      for (const select of selects) {
        const value = now.get(select.name) ?? "";
        select.value = [...select.options].some((option) => option.value === value) ? value : "";
      }
      if (selects.length) apply(bar);
    }
    const [number, column, direction] = (now.get("sort") ?? "").split(".");
    const table = sortables[Number(number)];
    if (direction && table?.tHead.rows[0].cells[Number(column)]?.dataset.sort) sortTable(table, Number(column), direction === "down" ? "down" : "up");
    picker?.restore?.();
  };
  addEventListener("hashchange", restore);
  restore();
})();
