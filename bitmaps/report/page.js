const drawn = [];
document.querySelectorAll(".chart").forEach((place, i) => {
  const field = specs[i].usermeta?.labels;
  const patch = (chart) => (field ? labelled(chart, field) : chart);
  vegaEmbed(place, specs[i], { actions: false, renderer: "svg", patch }).then(({ view }) => drawn.push([view, place]));
});

// Labels beside the dots, where they cover nothing, the most important ones first.
function labelled(chart, field) {
  const avoided = ["guessing_marks", "guess_marks", "front_marks"];
  const font = { value: getComputedStyle(document.body).fontFamily };
  chart.marks.push({
    type: "text",
    from: { data: "dots_marks" },
    encode: { enter: { text: { field: `datum.${field}` }, font, fontSize: { value: 12 }, limit: { value: 240 } } },
    transform: [{
      type: "label",
      size: { signal: "[max(width, 1), max(height, 1)]" }, // the width is known only after a first look
      sort: { field: "datum.rank" },
      offset: [4],
      anchor: ["right", "left", "top", "bottom", "top-right", "bottom-right", "top-left", "bottom-left"],
      avoidMarks: chart.marks.map((mark) => mark.name).filter((name) => avoided.includes(name)),
    }],
  });
  return chart;
}

// A click on a heading sorts by its column. Empty cells stay at the end.
document.querySelectorAll("table.sortable thead button").forEach((button) => {
  button.addEventListener("click", () => {
    const heading = button.parentElement, body = heading.closest("table").tBodies[0];
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[heading.cellIndex].dataset.value ?? row.cells[heading.cellIndex].textContent.trim();
    const order = (a, b) => heading.classList.contains("number") ? a - b : a.localeCompare(b, undefined, { numeric: true });
    const compare = (a, b) => (a === "") - (b === "") || order(a, b) * (down ? -1 : 1);
    body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
  });
});

// A table that is wider than its frame says so, with a shadow until its end is in sight.
document.querySelectorAll(".frame").forEach((frame) => {
  const inner = frame.querySelector(".wide");
  const look = () => {
    const hidden = inner.scrollWidth - inner.clientWidth;
    frame.classList.toggle("wider", hidden > 1);
    frame.classList.toggle("more", hidden - inner.scrollLeft > 1);
  };
  inner.addEventListener("scroll", look);
  new ResizeObserver(look).observe(inner);
  frame.closest("details")?.addEventListener("toggle", look);
});

// On paper, every sentence is open, and charts are drawn for its width.
const redraw = () => drawn.forEach(([view, place]) => view.signal("width", place.clientWidth).run());
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((details) => (details.open = true));
  document.body.classList.add("printing");
  redraw();
});
addEventListener("afterprint", () => {
  document.body.classList.remove("printing");
  redraw();
});
