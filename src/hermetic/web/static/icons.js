// The page's icons: strokes on a grid of 24, drawn in the colour of the text around them.

const PATHS = {
  plus: "M12 5v14M5 12h14",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14ZM20 20l-4-4",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  pin: "M9 4h6l-1 6 3 3v2H7v-2l3-3-1-6ZM12 15v5",
  archive: "M4 5h16v4H4zM6 9v10h12V9M10 13h4",
  trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5",
  pencil: "M4 20l1-4L16 5l3 3L8 19l-4 1ZM14 7l3 3",
  download: "M12 4v11M7 11l5 5 5-5M5 20h14",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  retry: "M4 12a8 8 0 1 0 2.5-5.8M4 4v4.5h4.5",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  clip: "M20 11.5l-8 8a5 5 0 0 1-7-7l8.5-8.5a3.4 3.4 0 0 1 4.8 4.8L10 17a1.7 1.7 0 0 1-2.4-2.4l7.4-7.4",
  close: "M6 6l12 12M18 6L6 18",
  check: "M5 12.5l4.5 4.5L19 7.5",
  chevron: "M9 6l6 6-6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  menu: "M4 7h16M4 12h16M4 17h10",
  host: "M4 5h16v6H4zM4 13h16v6H4zM8 8h.01M8 16h.01",
  tool: "M14.5 6.5a4 4 0 0 0-5.3 5.2L4 17l3 3 5.300-5.300a4 4 0 0 0 5.200-5.200L15 12l-3-3 2.500-2.500Z",
  warn: "M12 4l9 16H3L12 4ZM12 10v4M12 17h.01",
  folder: "M3 6h6l2 2h10v11H3z",
  theme: "M12 4a8 8 0 1 0 0 16 8 8 0 0 0 0-16ZM12 4v16",
  leave: "M10 4H5v16h5M9 12h11M16 8l4 4-4 4",
  file: "M6 3h8l4 4v14H6zM14 3v4h4",
};

const NS = "http://www.w3.org/2000/svg";

export function icon(name) {
  const svg = document.createElementNS(NS, "svg");
  for (const [key, value] of Object.entries({ viewBox: "0 0 24 24", class: `icon i-${name}`, "aria-hidden": "true" })) svg.setAttribute(key, value);
  const path = document.createElementNS(NS, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

// The seal: a ring of stitches with the house's mark. It turns while the process runs, and breaks when that has crashed.
export function sealMark() {
  const svg = document.createElementNS(NS, "svg");
  svg.setAttribute("viewBox", "0 0 32 32");
  svg.setAttribute("class", "seal-mark");
  svg.setAttribute("aria-hidden", "true");
  for (const [cls, d] of [
    ["ring", "M16 2.500a13.500 13.500 0 1 0 0 27a13.500 13.500 0 1 0 0-27Z"],
    ["letter", "M12 10.500v11M20 10.500v11M12 16h8"],
  ]) {
    const path = document.createElementNS(NS, "path");
    path.setAttribute("d", d);
    path.setAttribute("class", cls);
    svg.append(path);
  }
  return svg;
}
