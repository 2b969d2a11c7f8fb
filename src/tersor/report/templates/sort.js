"use strict";
// Column headings of the table of layers become buttons that sort its rows.
for (const table of document.querySelectorAll("table.sortable")) {
  for (const heading of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => sort(table, heading));
  }
}

// Paper has nothing to click on.
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll("details")) folded.open = true;
});

function sort(table, heading) {
  // Numbers begin with the largest, names with the first letter of the alphabet.
  const column = heading.cellIndex;
  const text = column === 0;
  const first = text ? "ascending" : "descending";
  const second = text ? "descending" : "ascending";
  const order = heading.ariaSort === first ? second : first;
  for (const other of table.tHead.rows[0].cells) other.ariaSort = null;
  heading.ariaSort = order;
  const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const compare = (a, b) =>
    text ? value(a).localeCompare(value(b), "en", { numeric: true }) : value(a) - value(b);
  const sign = order === "ascending" ? 1 : -1;
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort((a, b) => sign * compare(a, b)));
}
