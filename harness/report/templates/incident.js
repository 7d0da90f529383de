"use strict";
// Filters lists by what is typed; shows the trigger's line. The page is whole without it.
for (const box of document.querySelectorAll("input[data-filters]")) {
  const list = document.getElementById(box.dataset.filters);
  const count = document.getElementById(box.dataset.filters + "-count");
  box.addEventListener("input", () => {
    const wanted = box.value.toLowerCase();
    let shown = 0;
    for (const fold of list.querySelectorAll("details")) fold.open = wanted !== "";
    for (const line of list.querySelectorAll(":scope > :not(details), details > :not(summary)")) {
      const fits = line.textContent.toLowerCase().includes(wanted);
      line.hidden = !fits;
      if (fits) shown += 1;
    }
    count.textContent = wanted ? shown + " shown" : "";
  });
}
for (const button of document.querySelectorAll("button[data-jump]")) {
  button.addEventListener("click", () => {
    const line = document.getElementById(button.dataset.jump);
    if (!line) return;
    const tab = document.getElementById(line.dataset.tab);
    if (tab) tab.checked = true;
    line.hidden = false;
    const fold = line.closest("details");
    if (fold) fold.open = true;
    line.scrollIntoView({ block: "center" });
    line.classList.add("flash");
  });
}
for (const step of document.querySelectorAll("[data-step]")) {
  const twins = document.querySelectorAll('[data-step="' + step.dataset.step + '"]');
  step.addEventListener("mouseenter", () => twins.forEach((one) => one.classList.add("lit")));
  step.addEventListener("mouseleave", () => twins.forEach((one) => one.classList.remove("lit")));
}
const trigger = document.getElementById("trigger-line");
if (trigger) {
  const box = trigger.closest(".console");
  box.scrollTop = trigger.offsetTop - 180;
}
document.documentElement.dataset.ready = "yes";
