(function () {
  "use strict";
  const figure = document.currentScript.parentElement;
  const all = (what, root = figure) => Array.from(root.querySelectorAll(what));
  const views = all(".flow-view"), choices = all("select"), box = figure.querySelector(".flow-box");
  const tip = figure.querySelector(".flow-tip"), slider = figure.querySelector("input"), said = figure.querySelector("output");
  const view = () => views.find((one) => !one.hidden);
  const at = (node) => [Number(node.dataset.x), Number(node.dataset.y)];

  function choose() {
    views.forEach((one) => { one.hidden = choices.some((choice) => one.dataset[choice.name] !== choice.value); });
    leave();
  }

  function filter() {
    all(".flow-arrow").forEach((one) => one.classList.toggle("flow-off", Number(one.dataset.share) < Number(slider.value)));
    said.textContent = "≥ " + Number(slider.value).toFixed(1) + "%";
  }

  // What the tip says is what the node is called. It stands beside the node, within the figure.
  function tell(node) {
    tip.textContent = node.getAttribute("aria-label").replace(/; /g, "\n");
    tip.hidden = false;
    const outer = figure.getBoundingClientRect(), own = node.getBoundingClientRect();
    const left = own.left + own.width / 2 - outer.left - tip.offsetWidth / 2;
    const above = own.top - outer.top - tip.offsetHeight - 8;
    tip.style.left = Math.max(0, Math.min(left, outer.width - tip.offsetWidth)) + "px";
    tip.style.top = (above < 0 ? own.bottom - outer.top + 8 : above) + "px";
    const shown = view(), name = node.dataset.name;
    const ownArrows = all(".flow-arrow", shown).filter((one) => one.dataset.start === name || one.dataset.end === name);
    all(".flow-own", shown).forEach((one) => one.classList.remove("flow-own"));
    ownArrows.forEach((one) => one.classList.add("flow-own"));
    shown.classList.toggle("flow-picked", ownArrows.length > 0);
  }

  function leave() {
    tip.hidden = true;
    views.forEach((one) => one.classList.remove("flow-picked"));
  }

  // After the mouse has left, or places have moved, the tip is that of the focus again.
  function refresh() {
    const focused = document.activeElement;
    if (box.contains(focused) && focused.matches(".flow-node")) tell(focused); else leave();
  }

  // One node of a view can be reached by Tab; arrow keys go on to the nearest, across rather than along.
  function next(node, key) {
    const nodes = all(".flow-node", view());
    if (key === "Home" || key === "End") {
      const order = nodes.slice().sort((a, b) => at(a)[0] - at(b)[0] || at(a)[1] - at(b)[1]);
      return order[key === "Home" ? 0 : order.length - 1];
    }
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 1], ArrowUp: [1, -1] }[key];
    if (!step) return null;
    const [axis, sign] = step, from = at(node);
    let best = null, least = Infinity;
    nodes.forEach((one) => {
      const to = at(one), ahead = sign * (to[axis] - from[axis]), aside = Math.abs(to[1 - axis] - from[1 - axis]);
      if (ahead > 0.001 && ahead + 4 * aside < least) { best = one; least = ahead + 4 * aside; }
    });
    return best;
  }

  function go(from, to) {
    from.setAttribute("tabindex", "-1");
    to.setAttribute("tabindex", "0");
    to.focus();
  }

  const within = (event) => event.target.closest(".flow-node");
  box.addEventListener("pointerover", (event) => { if (within(event)) tell(within(event)); });
  box.addEventListener("pointerout", (event) => { if (within(event)) refresh(); });
  box.addEventListener("focusin", (event) => {
    const node = within(event);
    if (!node) return;
    all(".flow-node[tabindex='0']", view()).forEach((one) => one.setAttribute("tabindex", "-1"));
    node.setAttribute("tabindex", "0");
    tell(node);
  });
  box.addEventListener("focusout", leave);
  box.addEventListener("scroll", refresh);
  box.addEventListener("keydown", (event) => {
    const node = within(event);
    if (!node) return;
    if (event.key === "Escape") { leave(); return; }
    const to = next(node, event.key);
    if (to) go(node, to);
    if (to || event.key.startsWith("Arrow")) event.preventDefault();
  });
  addEventListener("resize", refresh);
  choices.forEach((choice) => choice.addEventListener("change", choose));
  if (slider) { slider.addEventListener("input", filter); filter(); }
  choose();
})();
