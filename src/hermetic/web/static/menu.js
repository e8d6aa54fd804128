// A menu at a button: arrows move, Escape and a click elsewhere close, the focus goes back to the button.

import { h } from "./dom.js";
import { icon } from "./icons.js";

let open = null;

// `items`: {label, icon, act, danger} or null for a line between.
export function openMenu(button, items) {
  if (open?.button === button) return close();
  close();
  const entries = items.filter(Boolean).map((item) =>
    h("button", { type: "button", role: "menuitem", tabindex: "-1", class: item.danger ? "danger" : "",
      onclick: () => (close(), item.act()) }, icon(item.icon), item.label));
  const rest = [...entries];
  const menu = h("div", { class: "menu", role: "menu", "aria-label": button.getAttribute("aria-label") ?? "Menu" },
    items.map((item) => (item ? rest.shift() : h("hr"))));
  menu.addEventListener("keydown", (event) => {
    const at = entries.indexOf(document.activeElement);
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) entries[(at + step + entries.length) % entries.length].focus();
    else if (event.key === "Home") entries[0].focus();
    else if (event.key === "End") entries.at(-1).focus();
    else if (event.key === "Tab") return close();
    else return;
    event.preventDefault();
  });
  button.closest("aside, main").append(menu);
  const place = button.getBoundingClientRect();
  const { width, height } = menu.getBoundingClientRect();
  menu.style.left = `${Math.max(8, Math.min(place.right - width, innerWidth - width - 8))}px`;
  menu.style.top = `${place.bottom + height + 8 > innerHeight ? Math.max(8, place.top - height - 4) : place.bottom + 4}px`;
  button.setAttribute("aria-expanded", "true");
  open = { button, menu };
  entries[0].focus();
}

// → whether one was open.
export function close(focus = true) {
  if (!open) return false;
  const { button, menu } = open;
  open = null;
  const had = menu.contains(document.activeElement);
  menu.remove();
  button.setAttribute("aria-expanded", "false");
  if (focus && had) button.focus();
  return true;
}

document.addEventListener("pointerdown", (event) => open && !open.menu.contains(event.target) && !open.button.contains(event.target) && close(false));
document.addEventListener("keydown", (event) => event.key === "Escape" && close() && event.stopImmediatePropagation(), true);
window.addEventListener("resize", () => close(false));
