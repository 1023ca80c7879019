"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const AXES = { step: "step", tokens: "tokens", hours: "hours since the start", epoch: "epoch" };
  const shown = []; // one per chart: {chart, box, plot (uPlot), draw}
  for (const chart of data.charts) {
    for (const s of chart.series || []) {
      const known = s.y.map((v) => v !== null); // null: it was no number
      for (const on in s.x) s.x[on] = data.xs[s.x[on]].filter((_, i) => known[i]);
      s.y = s.y.filter((_, i) => known[i]);
    }
    if (chart.bars) chart.bars = chart.bars.filter((b) => b.value !== null);
  }
  const drawnOver = data.charts.flatMap((chart) => chart.axes || []);
  let axis = drawnOver.includes("step") ? "step" : drawnOver[0] || "step"; // as the buttons have it
  let zoom = null; // [min, max] of the x axis, null: all of it
  let syncing = false;

  // ---- theme ---------------------------------------------------------------------------------------------------
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
  const theme = () => {
    const style = getComputedStyle(root);
    const read = (name) => style.getPropertyValue(name).trim();
    const colors = [];
    for (let i = 0; i < 8; i++) colors.push(read(`--c${i}`));
    return { ink: read("--ink"), soft: read("--soft"), line: read("--line"), paper: read("--paper"), colors };
  };
  const font = "12px system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif";

  // ---- numbers -------------------------------------------------------------------------------------------------
  const plain = (v, digits) => String(+v.toPrecision(digits));
  const count = (v, digits = 3) => {
    for (const [size, letter] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]])
      if (Math.abs(v) >= size) return plain(v / size, digits) + letter;
    return plain(v, digits);
  };
  const forms = {
    plain: (v) => (Math.abs(v) >= 1e5 ? count(v, 4) : plain(v, 5)),
    count: (v) => count(v, 4),
    percent: (v) => plain(100 * v, 4) + "%",
    usd: (v) => "$" + (Math.abs(v) >= 1 || v === 0 ? v.toFixed(2) : plain(v, 2)),
    small: (v) => (v !== 0 && Math.abs(v) < 1e-3 ? v.toExponential(2) : plain(v, 4)),
  };
  const tick = (form) => (v) =>
    form === "small" ? (v === 0 ? "0" : Math.abs(v) < 1e-3 ? plain(v, 3).replace(/(\..*?)0+e/, "$1e") : plain(v, 3)) : (forms[form] || forms.plain)(v);
  const xText = (v) => (axis === "hours" ? (v < 1 ? plain(60 * v, 3) + " min" : plain(v, 4) + " h") : axis === "tokens" ? count(v, 4) : v.toLocaleString("en"));

  // ---- data of a chart on an axis --------------------------------------------------------------------------------
  const axisOf = (chart) => (chart.axes.includes(axis) ? axis : chart.axes[0]);
  const smooth = (ys) => {
    // running mean of the middle half of the neighbours, narrower at the ends: one spike does not lift it
    const half = Math.max(2, Math.floor(ys.length / 60));
    return ys.map((_, at) => {
      const reach = Math.min(half, at, ys.length - 1 - at);
      const near = ys.slice(at - reach, at + reach + 1).sort((a, b) => a - b);
      const cut = Math.floor(near.length / 4);
      const kept = near.slice(cut, near.length - cut);
      return kept.reduce((a, b) => a + b, 0) / kept.length;
    });
  };
  const lines = (chart) => {
    // what is drawn: of many points the points faintly and their running mean over them
    const on = axisOf(chart), found = [];
    for (const s of chart.series) {
      const x = s.x[on];
      if (!x) continue;
      const many = chart.noisy && s.y.length >= 120 && !s.dots;
      found.push({ ...s, x, faint: s.faint || many, label: many ? `${s.label} (each record)` : s.label });
      if (many) found.push({ ...s, x, y: smooth(s.y), faint: false, smooth: true });
    }
    return found;
  };
  const table = (found) => {
    const ordered = found.map(({ x, y }) => {
      // on the time axis a restart may go back by a moment: uPlot wants what ascends
      const at = x.map((_, i) => i).sort((a, b) => x[a] - x[b]);
      return [at.map((i) => x[i]), at.map((i) => y[i])];
    });
    return ordered.length === 1 ? ordered[0] : uPlot.join(ordered);
  };

  // ---- one chart -------------------------------------------------------------------------------------------------
  const range = (chart) => (u, low, high) => {
    // by `zoom`: when this is asked, u.scales.x still holds what was shown before
    const xs = u.data[0], whole = zoom === null || !chart.axes.includes(axis);
    if (!xs.length) return [0, 1];
    const [min, max] = whole ? [xs[0], xs[xs.length - 1]] : zoom;
    const begin = whole && chart.clip === "start" ? min + 0.05 * (max - min) : min;
    let values = [];
    for (let s = 1; s < u.data.length; s++) {
      if (!u.series[s].show) continue;
      for (let i = 0; i < xs.length; i++) {
        const v = u.data[s][i];
        if (v != null && xs[i] >= begin && xs[i] <= max) values.push(v);
      }
    }
    if (!values.length) return low == null ? [0, 1] : [low, high || low + 1];
    values.sort((a, b) => a - b);
    low = values[0];
    high = values[values.length - 1];
    if (whole && chart.clip === "spikes") high = Math.min(high, 1.25 * values[Math.floor(0.99 * (values.length - 1))]);
    for (const line of chart.lines || []) if (whole) (low = Math.min(low, line.y)), (high = Math.max(high, line.y));
    if (chart.zero) low = Math.min(0, low);
    const spread = high - low || Math.abs(high) || 1;
    return [chart.zero && low === 0 ? 0 : low - 0.08 * spread, high + 0.08 * spread];
  };
  const annotate = (chart) => (u) => {
    const look = theme(), on = axisOf(chart), ratio = devicePixelRatio, { left, top, width, height } = u.bbox;
    const ctx = u.ctx;
    ctx.save();
    ctx.beginPath();
    ctx.rect(left, top, width, height);
    ctx.clip();
    ctx.font = `${11 * ratio}px system-ui, 'DejaVu Sans', sans-serif`;
    ctx.textAlign = "left";
    ctx.lineWidth = ratio;
    ctx.strokeStyle = ctx.fillStyle = look.soft;
    ctx.setLineDash([3 * ratio, 3 * ratio]);
    let free = -Infinity;
    for (const mark of chart.marks || []) {
      if (mark.x[on] == null) continue;
      const x = u.valToPos(mark.x[on], "x", true);
      ctx.beginPath();
      ctx.moveTo(x, top);
      ctx.lineTo(x, top + height);
      ctx.stroke();
      if (x > free && x < left + width - 20 * ratio) {
        ctx.fillText(mark.text, x + 3 * ratio, top + 11 * ratio);
        free = x + ctx.measureText(mark.text).width + 8 * ratio;
      }
    }
    for (const line of chart.lines || []) {
      const y = u.valToPos(line.y, "y", true);
      ctx.beginPath();
      ctx.moveTo(left, y);
      ctx.lineTo(left + width, y);
      ctx.stroke();
      ctx.fillText(line.text, left + width - ctx.measureText(line.text).width - 4 * ratio, y - 4 * ratio);
    }
    const highest = Math.max(...u.data.slice(1).map((ys) => ys.find((v) => v != null) ?? -Infinity));
    if (zoom === null && chart.clip === "start" && highest > u.scales.y.max) {
      const said = `the start, from ${plain(highest, 3)}, is above the scale`;
      ctx.fillText(said, left + width - ctx.measureText(said).width - 4 * ratio, top + 26 * ratio);
    }
    ctx.restore();
  };
  // what a series has nearest to the cursor: those of other runs have points elsewhere
  const nearest = (u, s, at) => {
    const ys = u.data[s];
    for (let d = 0; d < ys.length; d++) {
      if (ys[at - d] != null) return at - d;
      if (ys[at + d] != null) return at + d;
    }
    return at;
  };
  const plot = (entry) => {
    const { chart, box } = entry;
    if (entry.plot) entry.plot.destroy();
    const look = theme(), found = lines(chart), form = forms[chart.form] || forms.plain, on = axisOf(chart);
    const grid = { stroke: look.line, width: 1 }, ticks = { ...grid, size: 4 };
    entry.plot = new uPlot(
      {
        width: box.clientWidth,
        height: chart.wide ? 330 : 230,
        cursor: { dataIdx: nearest, sync: { key: on }, drag: { x: true, y: false, setScale: true }, focus: { prox: 24 } },
        legend: { live: true },
        scales: { x: { time: false }, y: { range: range(chart) } },
        axes: [
          { stroke: look.soft, font, grid, ticks, label: chart.wide ? AXES[on] : undefined, labelFont: font, labelSize: 16, size: 32, space: 70,
            values: (u, vs) => vs.map((v) => (on !== "hours" && v % 1 ? "" : on === "epoch" ? String(v) : xText(v))) },
          { stroke: look.soft, font, grid, ticks, size: 62, space: 34, values: (u, vs) => vs.map(tick(chart.form)) },
        ],
        series: [
          { label: AXES[on] === "hours since the start" ? "time" : on, value: (u, v) => (v == null ? "–" : on === "epoch" ? v : xText(v)) },
          ...found.map((s) => ({
            label: s.smooth && !chart.several ? `${s.label}, smoothed` : s.label,
            class: s.faint && chart.several ? "raw" : undefined,
            stroke: s.faint ? look.colors[s.color % 8] + "55" : look.colors[s.color % 8],
            width: s.faint ? 1 : 2,
            dash: s.dash ? [6, 4] : undefined,
            spanGaps: true,
            points: { show: s.dots || s.y.length < 3, size: 6, fill: look.colors[s.color % 8] },
            value: (u, v) => (v == null ? "–" : form(v)),
          })),
        ],
        hooks: {
          draw: [annotate(chart)],
          setScale: [
            (u, key) => {
              if (key !== "x" || syncing || !u.data[0].length || !chart.axes.includes(axis)) return;
              const { min, max } = u.scales.x, xs = u.data[0];
              setZoom(min <= xs[0] && max >= xs[xs.length - 1] ? null : [min, max]);
            },
          ],
        },
      },
      table(found),
      box,
    );
    if (zoom && chart.axes.includes(axis)) entry.plot.setScale("x", { min: zoom[0], max: zoom[1] });
  };
  // uPlot sets scales in a microtask: `syncing` has to last until then
  const setZoom = (wanted) => {
    const same = (wanted === null) === (zoom === null) && (!wanted || (wanted[0] === zoom[0] && wanted[1] === zoom[1]));
    if (same) return;
    zoom = wanted;
    syncing = true;
    for (const { plot: u, chart } of shown) {
      if (!u || !chart.axes.includes(axis)) continue;
      const xs = u.data[0];
      u.setScale("x", zoom ? { min: zoom[0], max: zoom[1] } : { min: xs[0], max: xs[xs.length - 1] });
    }
    setTimeout(() => (syncing = false), 0);
    document.getElementById("whole").hidden = zoom === null;
  };

  // ---- bars --------------------------------------------------------------------------------------------------------
  const escape = (text) => String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);
  const svgText = (x, y, text, fill, more = "") => `<text x="${x}" y="${y}" fill="${fill}" ${more}>${escape(text)}</text>`;
  const svgOf = (width, height, inside, look, title) =>
    `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" ` +
    `font-family="system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif" font-size="12" role="img" aria-label="${escape(title)}">` +
    `<rect width="100%" height="100%" fill="${look.paper}"/>${inside}</svg>`;
  const bars = (chart, width, titled) => {
    const look = theme(), top = titled ? 30 : 4, row = 26;
    const form = chart.form === "percent" ? (v) => (100 * v).toFixed(1) + "%" : forms[chart.form] || forms.plain;
    const left = Math.min(0.4 * width, 12 + 6.6 * Math.max(...chart.bars.map((b) => b.label.length)));
    // a note that leaves bars no room is said where the pointer stands
    const beside = width - left - 64, notes = 7.2 * Math.max(...chart.bars.map((b) => (b.note || "").length)), noted = beside - notes >= 40;
    const room = Math.max(40, noted ? beside - notes : beside), most = Math.max(...chart.bars.map((b) => b.high ?? b.value), 1e-12);
    let inside = titled ? svgText(8, 19, `${chart.title} (${chart.unit})`, look.ink, 'font-weight="bold" font-size="14"') : "";
    chart.bars.forEach((b, i) => {
      const y = top + i * row, w = Math.max(1, (room * b.value) / most), color = look.colors[(b.color || 0) % 8];
      const long = Math.floor((left - 8) / 6.6), name = b.label.length > long ? b.label.slice(0, long - 2) + "…" : b.label;
      inside += svgText(left - 8, y + 16, name, look.ink, 'text-anchor="end"');
      inside += `<rect x="${left}" y="${y + 4}" width="${w}" height="16" rx="2" fill="${color}"><title>${escape(b.label)}: ${escape(form(b.value) + (b.note ? `, ${b.note}` : ""))}</title></rect>`;
      let end = w;
      if (b.low != null && b.high != null) {
        const [l, h] = [b.low, b.high].map((v) => left + (room * v) / most);
        inside += `<path d="M${l} ${y + 12}H${h}M${l} ${y + 8}v8M${h} ${y + 8}v8" stroke="${look.ink}" fill="none"/>`;
        end = Math.max(end, h - left);
      }
      inside += svgText(left + end + 6, y + 16, form(b.value) + (b.note && noted ? `  ${b.note}` : ""), look.soft);
    });
    return svgOf(width, top + chart.bars.length * row + 6, inside, look, chart.title);
  };

  // ---- pictures to keep ------------------------------------------------------------------------------------------
  const svgLines = (entry) => {
    const { chart, plot: u } = entry, look = theme(), found = lines(chart), W = 900, H = 460, L = 74, R = 16, T = 44, B = 74;
    const { min: x0, max: x1 } = u.scales.x, { min: y0, max: y1 } = u.scales.y, on = axisOf(chart);
    const X = (v) => L + ((v - x0) / (x1 - x0 || 1)) * (W - L - R), Y = (v) => H - B - ((v - y0) / (y1 - y0 || 1)) * (H - T - B);
    const nice = (low, high, n) => {
      const raw = (high - low || 1) / n, size = 10 ** Math.floor(Math.log10(raw)), step = [1, 2, 5, 10].map((k) => k * size).find((k) => k >= raw);
      const at = [];
      for (let v = Math.ceil(low / step) * step; v <= high + 1e-9 * step; v += step) at.push(+v.toPrecision(12));
      return at;
    };
    let inside = svgText(L, 24, `${chart.title} (${chart.unit})`, look.ink, 'font-weight="bold" font-size="15"');
    for (const v of nice(y0, y1, 6)) {
      inside += `<path d="M${L} ${Y(v)}H${W - R}" stroke="${look.line}"/>` + svgText(L - 8, Y(v) + 4, tick(chart.form)(v), look.soft, 'text-anchor="end"');
    }
    for (const v of nice(x0, x1, 8)) {
      inside += `<path d="M${X(v)} ${T}V${H - B}" stroke="${look.line}"/>` + svgText(X(v), H - B + 18, on === "epoch" ? v : xText(v), look.soft, 'text-anchor="middle"');
    }
    inside += svgText((L + W - R) / 2, H - B + 38, AXES[on] || on, look.soft, 'text-anchor="middle"');
    inside += `<clipPath id="area"><rect x="${L}" y="${T}" width="${W - L - R}" height="${H - T - B}"/></clipPath><g clip-path="url(#area)">`;
    let legend = L;
    let names = "";
    for (const s of found) {
      const color = look.colors[s.color % 8];
      const d = s.x.map((x, i) => `${i ? "L" : "M"}${X(x).toFixed(1)} ${Y(s.y[i]).toFixed(1)}`).join("");
      inside += `<path d="${d}" fill="none" stroke="${color}" stroke-width="${s.faint ? 1 : 2}" ${s.faint ? 'stroke-opacity="0.35"' : ""} ${s.dash ? 'stroke-dasharray="6 4"' : ""}/>`;
      if (s.dots) inside += s.x.map((x, i) => `<circle cx="${X(x).toFixed(1)}" cy="${Y(s.y[i]).toFixed(1)}" r="3" fill="${color}"/>`).join("");
      if (chart.noisy && s.faint && s.y.length >= 120) continue;
      names += `<path d="M${legend} ${H - 16}h18" stroke="${color}" stroke-width="2"/>` + svgText(legend + 24, H - 12, s.label, look.ink);
      legend += 44 + 7 * s.label.length;
    }
    for (const mark of chart.marks || [])
      if (mark.x[on] != null)
        inside += `<path d="M${X(mark.x[on])} ${T}V${H - B}" stroke="${look.soft}" stroke-dasharray="3 3"/>` + svgText(X(mark.x[on]) + 3, T + 12, mark.text, look.soft);
    for (const line of chart.lines || [])
      inside += `<path d="M${L} ${Y(line.y)}H${W - R}" stroke="${look.soft}" stroke-dasharray="3 3"/>` + svgText(W - R - 4, Y(line.y) - 4, line.text, look.soft, 'text-anchor="end"');
    return svgOf(W, H, inside + "</g>" + names, look, chart.title);
  };
  const svg = (entry) => (entry.chart.bars ? bars(entry.chart, 900, true) : svgLines(entry));
  const save = (name, href) => {
    const link = document.createElement("a");
    link.download = name;
    link.href = href;
    link.click();
  };
  const keep = (entry, kind) => {
    const text = svg(entry), href = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
    if (kind === "svg") return save(`${entry.chart.name}.svg`, href);
    const picture = new Image();
    picture.onload = () => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [2 * picture.width, 2 * picture.height];
      canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
      save(`${entry.chart.name}.png`, canvas.toDataURL("image/png"));
    };
    picture.src = href;
  };

  // ---- the page ----------------------------------------------------------------------------------------------------
  const draw = (entry) => {
    if (entry.chart.bars) entry.box.innerHTML = bars(entry.chart, entry.box.clientWidth, false);
    else plot(entry);
  };
  const drawAll = () => {
    syncing = true;
    shown.forEach(draw);
    setTimeout(() => (syncing = false), 0);
  };
  for (const figure of document.querySelectorAll("figure[data-chart]")) {
    const entry = { chart: data.charts[+figure.dataset.chart], box: figure.querySelector(".plot"), plot: null };
    shown.push(entry);
    for (const button of figure.querySelectorAll("button[data-keep]")) button.onclick = () => keep(entry, button.dataset.keep);
  }
  drawAll();
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    drawAll();
  });
  const setAxis = (name) => {
    axis = name;
    for (const button of document.querySelectorAll("#axis button")) button.setAttribute("aria-pressed", button.dataset.axis === name);
    zoom = null;
    document.getElementById("whole").hidden = true;
    drawAll();
  };
  for (const button of document.querySelectorAll("#axis button")) button.onclick = () => setAxis(button.dataset.axis);
  const whole = document.getElementById("whole");
  if (whole) whole.onclick = () => setZoom(null);
  for (const button of document.querySelectorAll("button[data-from]"))
    button.onclick = () => {
      if (axis !== "step") setAxis("step");
      const from = +button.dataset.from, to = +button.dataset.to, room = Math.max(1, to - from, 0.02 * data.last_step);
      setZoom([Math.max(0, from - room), to + room]);
      document.getElementById("charts").scrollIntoView({ behavior: "smooth" });
    };
  const setTheme = (name) => {
    root.dataset.theme = name;
    drawAll();
  };
  document.getElementById("theme").onclick = () => {
    const name = dark() ? "light" : "dark";
    setTheme(name);
    try { localStorage.setItem("raygpt-theme", name); } catch {}
  };
  try { if (localStorage.getItem("raygpt-theme")) setTheme(localStorage.getItem("raygpt-theme")); } catch {}
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => root.dataset.theme || drawAll());
  // on paper: light, all of it open, as wide as the paper
  let before = null;
  addEventListener("beforeprint", () => {
    before = [root.dataset.theme, [...document.querySelectorAll("details:not([open])")]];
    before[1].forEach((part) => (part.open = true));
    root.dataset.theme = "light";
    root.classList.add("print");
    drawAll();
  });
  addEventListener("afterprint", () => {
    if (!before) return;
    if (before[0]) root.dataset.theme = before[0];
    else delete root.dataset.theme;
    before[1].forEach((part) => (part.open = false));
    root.classList.remove("print");
    drawAll();
  });
})();
