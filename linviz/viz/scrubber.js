// The moving part of scrubber.py. `model.get("data")` is what Scrubber._data wrote; `el` holds the
// elements that Scrubber._body wrote, one .lv-panel a panel. Also usable as an anywidget's render.
function render({ model, el }) {
  const data = model.get("data");
  const find = (selector) => el.querySelector(selector);
  const slider = find(".lv-slider"), button = find(".lv-play"), readout = find(".lv-readout");
  const places = el.querySelectorAll(".lv-panel"), tokens = el.querySelectorAll(".lv-tokens span");
  const panels = data.panels.map((panel, i) => ({ ...panel, place: places[i] }));
  const last = data.steps.length - 1;
  let t = data.start, timer = 0, pointed = null;

  // A sheet is a PNG in three pieces; the middle one is its palette, so a theme costs no pixels.
  function sheet(panel, palette, ready) {
    const image = new Image();
    image.onload = () => ready(image);
    image.src = "data:image/png;base64," + data.head[panel.id] + palette + data.tail[panel.id];
  }
  const spot = (panel) => [(t % panel.across) * panel.w, Math.floor(t / panel.across) * panel.h];
  function short(x) {
    if (x === null) return "–";
    const size = Math.abs(x);
    return size && (size < 1e-3 || size >= 1e6) ? x.toExponential(1) : String(Number(x.toPrecision(3)));
  }

  const draw = {
    frames(panel) {
      if (!panel.image) return;
      const pen = panel.place.querySelector("canvas").getContext("2d");
      pen.clearRect(0, 0, panel.w, panel.h);
      pen.drawImage(panel.image, ...spot(panel), panel.w, panel.h, 0, 0, panel.w, panel.h);
    },
    rows(panel) {
      const mark = panel.place.querySelector(".lv-cursor");
      mark.setAttribute("y", panel.top + t * panel.cell);
      if (!panel.image) return;
      const pen = panel.place.querySelector("canvas").getContext("2d");
      pen.clearRect(0, 0, panel.w, panel.h);
      pen.drawImage(panel.image, 0, 0);
    },
    lines(panel) {
      const mark = panel.place.querySelector(".lv-cursor"), x = panel.left + t * panel.step;
      mark.setAttribute("x1", x);
      mark.setAttribute("x2", x);
      panel.place.querySelectorAll(".lv-value").forEach((place, i) => {
        place.textContent = short(panel.values[i][t]);
      });
    },
    points(panel) {
      const xs = panel.x[t], ys = panel.y[t], line = panel.place.querySelector("polyline");
      const dots = panel.place.querySelectorAll("circle.lv-dot");
      const shown = xs.map((x, i) => x !== null && ys[i] !== null);
      dots.forEach((dot, i) => {
        dot.style.display = shown[i] ? "" : "none";
        if (shown[i]) dot.setAttribute("cx", xs[i]), dot.setAttribute("cy", ys[i]);
      });
      const kept = xs.map((x, i) => [x, ys[i]]).filter((_, i) => shown[i]);
      if (line) line.setAttribute("points", kept.map((pair) => pair.join(",")).join(" "));
    },
  };

  function show(next) {
    t = Math.max(0, Math.min(last, next));
    slider.value = t;
    const words = data.words[t];
    slider.setAttribute("aria-valuetext", words);
    find(".lv-time").textContent = words;
    tokens.forEach((token, i) => token.classList.toggle("lv-now", i === t));
    panels.forEach((panel) => draw[panel.kind](panel));
    readout.textContent = pointed ? pointed() : "";
  }

  function stop() {
    clearInterval(timer);
    timer = 0;
    button.textContent = "▶ play";
    button.setAttribute("aria-pressed", "false");
  }
  function toggle() {
    if (timer) return stop();
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (t === last) show(0);
    button.textContent = "❚❚ pause";
    button.setAttribute("aria-pressed", "true");
    timer = setInterval(() => {
      if (t === last || !el.isConnected) return stop();
      show(t + 1);
    }, calm ? 1000 : data.pause);
  }

  function paint() {
    const theme = getComputedStyle(el).getPropertyValue("--lv-theme").trim() || "light";
    panels.filter((panel) => panel.map).forEach((panel) => {
      if (panel.theme === theme) return;
      panel.theme = theme;
      sheet(panel, data.palettes[panel.map + "-" + theme], (image) => {
        if (panel.theme !== theme) return;
        panel.image = image;
        draw[panel.kind](panel);
      });
    });
  }

  // The value under the pointer: the same sheet with a palette of greys says which level it is.
  function value(panel, i, j) {
    if (!panel.levels) return "";
    const [x, y] = panel.kind === "frames" ? spot(panel) : [0, 0];
    const [level, , , seen] = panel.levels.getImageData(x + j, y + i, 1, 1).data;
    if (!seen) return "not applicable";
    if (level === 254) return "NaN";
    const { table, low, high } = panel;
    const at = (n) => (table ? table[n] : low + (n / 253) * (high - low));
    const gaps = [level - 1, level + 1].filter((n) => n >= 0 && n <= 253).map((n) => at(n) - at(level));
    const error = Math.max(...gaps.map(Math.abs)) / 2;
    if (level === 253 && panel.over) return "≥ " + Number((high - error).toPrecision(4));
    if (level === 0 && panel.under) return "≤ " + Number((low + error).toPrecision(4));
    return "= " + about(at(level), error);
  }
  // A number to one digit more than its error, which is rounded up.
  function about(number, error) {
    const digit = 10 ** Math.floor(Math.log10(error));
    const shown = (Math.round((number / digit) * 10) / 10) * digit;
    const most = Math.ceil((error + Math.abs(number - shown)) / digit - 1e-9) * digit;
    return Number(shown.toPrecision(12)) + " ± " + Number(most.toPrecision(1));
  }
  function learn(panel) {
    if (panel.asked) return;
    panel.asked = true;
    sheet(panel, data.palettes.level, (image) => {
      const canvas = document.createElement("canvas");
      canvas.width = image.width;
      canvas.height = image.height;
      panel.levels = canvas.getContext("2d", { willReadFrequently: true });
      panel.levels.drawImage(image, 0, 0);
    });
  }
  const clamp = (x, size) => Math.max(0, Math.min(size - 1, Math.floor(x * size)));

  panels.forEach((panel) => {
    const canvas = panel.place.querySelector("canvas"), plot = panel.place.querySelector(".lv-plot");
    if (canvas) {
      const cell = (event) => {
        const box = canvas.getBoundingClientRect();
        return [
          clamp((event.clientY - box.top) / box.height, panel.h),
          clamp((event.clientX - box.left) / box.width, panel.w),
        ];
      };
      learn(panel);
      canvas.addEventListener("pointermove", (event) => {
        const [i, j] = cell(event);
        const where = panel.names[0] + " " + panel.rows[i] + ", " + panel.names[1] + " " + panel.cols[j];
        pointed = () => `${panel.title} (${where}) ${value(panel, i, j)}`;
        readout.textContent = pointed();
      });
      canvas.addEventListener("pointerleave", () => {
        pointed = null;
        readout.textContent = "";
      });
      if (panel.kind === "rows") canvas.addEventListener("click", (event) => show(cell(event)[0]));
    } else if (panel.kind === "lines") {
      plot.addEventListener("click", (event) => {
        const box = plot.getBoundingClientRect();
        show(Math.round((event.clientX - box.left - panel.left) / panel.step));
      });
    }
  });
  slider.addEventListener("input", () => show(Number(slider.value)));
  button.addEventListener("click", toggle);
  tokens.forEach((token, i) => token.addEventListener("click", () => show(i)));
  el.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.target === button && event.key === " ") return; // presses it
    const to = { ArrowRight: t + 1, ArrowLeft: t - 1, Home: 0, End: last }[event.key];
    if (event.key === " ") toggle();
    else if (to === undefined || event.target === slider) return;
    else show(to);
    event.preventDefault();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  const watch = new MutationObserver(paint), attributes = { attributes: true };
  [document.documentElement, document.body].forEach((page) => watch.observe(page, attributes));
  stop();
  show(t);
  paint();
}
