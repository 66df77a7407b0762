// Draws what TensorBoard's profiler plugin hands to Google Charts, which that plugin loads from the internet: tables as
// tables, and every chart as a stacked bar per row. The data is the plugin's; only the drawing is ours.
(() => {
  const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7f7f7f", "#000000"];
  const TEXT = "font-size: 12px";
  const LABEL =
    "flex: none; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; text-align: right; padding-right: 8px";

  class DataTable {
    constructor() {
      this.columns = [];
      this.rows = [];
    }
    addColumn(type, label) {
      this.columns.push(typeof type === "object" ? type : { type, label });
    }
    addRow(row) {
      this.rows.push(row);
    }
    addRows(rows) {
      this.rows.push(...rows);
    }
    setProperty() {}
  }

  // A cell is a value, or {v: value, f: how to show it}.
  const value = (cell) => (cell !== null && typeof cell === "object" && "v" in cell ? cell.v : cell);
  const shown = (cell) => String((cell !== null && typeof cell === "object" && cell.f) || value(cell));

  function element(name, parent, text, style) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    made.style.cssText = style || "";
    parent.append(made);
    return made;
  }

  class Chart {
    constructor(container) {
      this.container = container;
    }
    clearChart() {
      this.container.replaceChildren();
    }
    setSelection() {}
    getSelection() {
      return [];
    }
  }

  class Table extends Chart {
    draw(data, options) {
      this.clearChart();
      const style = "width: 100%; border-collapse: collapse; font-size: 13px";
      const table = element("table", this.container, undefined, style);
      const border = "border-bottom: 1px solid #ddd; padding: 3px 8px; text-align: ";
      const head = element("tr", table);
      for (const column of data.columns) element("th", head, column.label, border + "left");
      let rows = data.rows;
      if (options.sortColumn !== undefined)
        rows = [...rows].sort((a, b) => value(b[options.sortColumn]) - value(a[options.sortColumn]));
      for (const row of rows.slice(0, options.pageSize || rows.length)) {
        const line = element("tr", table);
        for (const cell of row)
          element("td", line, shown(cell), border + (typeof value(cell) === "number" ? "right" : "left"));
      }
    }
  }

  class Bars extends Chart {
    draw(data) {
      this.clearChart();
      const places = data.columns.map((_, place) => place);
      const isNumber = ({ type, role }) => type === "number" && !role;
      const numbers = places.slice(1).filter((place) => isNumber(data.columns[place]));
      const total = (row) => numbers.reduce((sum, place) => sum + (Number(value(row[place])) || 0), 0);
      const rows = data.rows.slice(0, 12);
      // Labels and bars take two fifths of the width each, numbers the rest.
      const share = Math.min(0.4 * (this.container.clientWidth || 500), 220);
      const most = Math.max(...rows.map(total), Number.MIN_VALUE);
      if (numbers.length > 1) {
        const legend = element("div", this.container, undefined, TEXT);
        numbers.forEach((place, number) => {
          element("span", legend, "\u25A0 ", `color: ${COLOURS[number % COLOURS.length]}; margin-left: 12px`);
          element("span", legend, data.columns[place].label);
        });
      }
      for (const row of rows) {
        const style = `display: flex; align-items: center; ${TEXT}; height: 20px`;
        const line = element("div", this.container, undefined, style);
        element("span", line, shown(row[0]), `${LABEL}; width: ${share - 8}px`);
        numbers.forEach((place, number) => {
          const width = (share * (Number(value(row[place])) || 0)) / most;
          const colour = COLOURS[number % COLOURS.length];
          element("span", line, undefined, `flex: none; width: ${width}px; height: 14px; background: ${colour}`);
        });
        element("span", line, total(row).toLocaleString("en", { maximumFractionDigits: 1 }), "padding-left: 8px");
      }
    }
  }

  function arrayToDataTable(rows) {
    const table = new DataTable();
    rows[0].forEach((head, place) => {
      const column = typeof head === "object" ? { ...head } : { label: head };
      column.type ||= typeof value((rows[1] || [])[place]) === "number" ? "number" : "string";
      table.addColumn(column);
    });
    table.addRows(rows.slice(1));
    return table;
  }

  const visualization = { DataTable, arrayToDataTable, Table, events: { addListener() {} } };
  for (const name of ["ColumnChart", "ComboChart", "LineChart", "PieChart", "SteppedAreaChart", "Timeline"])
    visualization[name] = Bars;
  window.google = { charts: { load: () => Promise.resolve() }, visualization };
})();
