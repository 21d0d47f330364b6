(() => {
  const words = document.getElementById("words");
  const saving = document.getElementById("saving");
  const state = document.getElementById("state");
  const systems = [...document.querySelectorAll(".system")];
  const empty = document.getElementById("empty");
  if (!words) return;
  const filter = () => {
    const wanted = words.value.trim().toLowerCase();
    let shown = 0;
    for (const system of systems) {
      const fits = system.textContent.toLowerCase().includes(wanted)
        && (!saving.value || system.dataset.saves.split(",").includes(saving.value))
        && (!state.value || system.dataset.state === state.value);
      system.hidden = !fits;
      shown += fits;
    }
    empty.hidden = shown > 0;
  };
  for (const control of [words, saving, state]) control.addEventListener("input", filter);
  filter();
})();
