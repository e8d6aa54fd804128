// Not a module, so that it runs before the first paint: the colours that somebody chose here, else the system's.
try {
  const theme = localStorage.getItem("theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Storage is switched off: the system's colours.
}
