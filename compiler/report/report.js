"use strict";

// Tables sort by the column that is clicked: numbers largest first, text from A, then reversed.
for (const table of document.querySelectorAll("table.sortable")) {
  const value = (row, column, numeric) => {
    const text = row.cells[column].textContent;
    return numeric ? parseFloat(text.replaceAll(",", "")) : text;
  };
  for (const button of table.tHead.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      const head = button.parentElement;
      const numeric = head.classList.contains("n");
      const before = head.getAttribute("aria-sort");
      const falling = before ? before === "ascending" : numeric;
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const compare = (one, two) => {
        const a = value(one, head.cellIndex, numeric), b = value(two, head.cellIndex, numeric);
        return numeric ? a - b : a.localeCompare(b, undefined, { numeric: true });
      };
      const body = table.tBodies[0];
      const rows = [...body.rows].sort((one, two) => (falling ? -1 : 1) * compare(one, two));
      body.append(...rows);
    });
  }
}

// The filter: rows stay whose texts (not numbers) hold every word typed.
{
  const box = document.getElementById("filter"), told = document.getElementById("filtered");
  const rows = [...document.getElementById("gemms").tBodies[0].rows].map((row) => ({
    row,
    text: [...row.cells].filter((cell) => !cell.classList.contains("n"))
      .map((cell) => cell.textContent).join(" ").toLowerCase(),
    cycles: parseFloat(row.dataset.cycles),
  }));
  const total = rows.reduce((sum, one) => sum + one.cycles, 0);
  const apply = () => {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0, cycles = 0;
    for (const one of rows) {
      const shown = words.every((word) => one.text.includes(word));
      one.row.hidden = !shown;
      if (shown) {
        count += 1;
        cycles += one.cycles;
      }
    }
    const share = total ? (100 * cycles / total).toFixed(1) : "0.0";
    told.textContent = `${count} of ${rows.length} GEMMs, ${share}% of their cycles`;
  };
  box.addEventListener("input", apply);
  apply();
}

// Zoom of the time line: the picture gets wider inside a frame that scrolls.
{
  const picture = document.getElementById("time"), frame = picture.parentElement;
  const most = 64;
  let zoom = 1;
  const set = (wanted, at) => {
    const next = Math.min(most, Math.max(1, wanted));
    const point = (frame.scrollLeft + at) / zoom;
    zoom = next;
    picture.style.width = `${100 * zoom}%`;
    picture.dataset.level = zoom >= 16 ? "2" : zoom >= 4 ? "1" : "0";
    frame.scrollLeft = point * zoom - at;
  };
  const middle = () => frame.clientWidth / 2;
  document.getElementById("closer").addEventListener("click", () => set(2 * zoom, middle()));
  document.getElementById("wider").addEventListener("click", () => set(zoom / 2, middle()));
  document.getElementById("whole").addEventListener("click", () => set(1, 0));
  frame.addEventListener("wheel", (event) => {
    if (!event.ctrlKey) return;
    event.preventDefault();
    const at = event.clientX - frame.getBoundingClientRect().left;
    set(zoom * 2 ** (-event.deltaY / 200), at);
  }, { passive: false });
}
