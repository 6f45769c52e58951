// Galleries: search, good and bad, order by score.
for (const controls of document.querySelectorAll(".controls")) {
  const grid = controls.nextElementSibling;
  const cards = [...grid.children];
  const output = controls.querySelector("output");
  const all = output.textContent;
  const state = { show: "all", sort: "given", words: "" };
  const orders = {
    given: (a, b) => a.dataset.place - b.dataset.place,
    worst: (a, b) => a.dataset.score - b.dataset.score,
    best: (a, b) => b.dataset.score - a.dataset.score,
  };
  const update = () => {
    const shown = cards.filter((card) => {
      card.hidden =
        (state.show !== "all" && card.dataset.mark !== state.show) ||
        !card.textContent.toLowerCase().includes(state.words);
      return !card.hidden;
    });
    grid.append(...cards.sort(orders[state.sort]));
    output.textContent = shown.length === cards.length ? all : `${shown.length} of ${cards.length} shown`;
  };
  controls.addEventListener("input", (event) => {
    state.words = event.target.value.toLowerCase();
    update();
  });
  controls.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    Object.assign(state, button.dataset);
    for (const other of button.parentElement.children) other.setAttribute("aria-pressed", other === button);
    update();
  });
}
