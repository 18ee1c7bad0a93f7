// The keyboard must reach what scrolls, and a heading needs a level.
window.addEventListener("load", () => {
  for (const one of document.querySelectorAll("pre, .table-wrapper, div.math")) {
    if (one.scrollWidth > one.clientWidth) one.tabIndex = 0;
  }
  for (const one of document.querySelectorAll("p.caption[role=heading]")) one.ariaLevel = "2";
});
