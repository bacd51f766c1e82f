(() => {
  const problems = [];
  const root = document.documentElement;
  if (!root.lang) problems.push("the page names no language");
  if (!document.title) problems.push("the page has no title");
  if (!document.querySelector("main")) problems.push("the page has no main part");

  const headings = [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].map((h) => +h.tagName[1]);
  if (headings.filter((level) => level === 1).length !== 1) problems.push("the page has not exactly one h1");
  headings.forEach((level, i) => {
    if (level > (headings[i - 1] ?? 0) + 1) problems.push(`a heading of level ${level} comes too early`);
  });

  const what = (el) => `<${el.tagName.toLowerCase()}> "${(el.textContent || el.value || "").trim().slice(0, 40)}"`;

  if (root.scrollWidth > root.clientWidth) problems.push(`the page is ${root.scrollWidth} pixels wide in a window of ${root.clientWidth}`);

  // Colours, by WCAG 2.2 §1.4.3. Layers are painted over each other from the page up.
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const paint = (layers) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const layer of layers) {
      canvas.fillStyle = layer;
      canvas.fillRect(0, 0, 1, 1);
    }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [light, dark] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (light + 0.05) / (dark + 0.05);
  };
  const ground = (el) => {
    const layers = [];
    for (let e = el; e; e = e.parentElement) layers.unshift(getComputedStyle(e).backgroundColor);
    return ["Canvas", ...layers];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const seen = new Set();
  for (let node = texts.nextNode(); node; node = texts.nextNode()) {
    const el = node.parentElement;
    if (!node.data.trim() || seen.has(el) || !el.checkVisibility({ visibilityProperty: true, opacityProperty: true })) continue;
    seen.add(el);
    const style = getComputedStyle(el);
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && +style.fontWeight >= 700);
    const ratio = contrast(paint([...ground(el), style.color]), paint(ground(el)));
    if (ratio < (large ? 3 : 4.5)) problems.push(`${what(el)} has a contrast of ${ratio.toFixed(2)}`);
  }

  for (const el of document.querySelectorAll("a[href], button, input:not([type=hidden])")) {
    const name = el.labels?.length ? el.labels[0].textContent : el.ariaLabel || el.textContent;
    if (!name.trim()) problems.push(`${what(el)} has no name`);
    el.focus({ focusVisible: true });
    const style = getComputedStyle(el);
    if (document.activeElement !== el) problems.push(`${what(el)} takes no focus`);
    else if (style.outlineStyle === "none" || parseFloat(style.outlineWidth) === 0) problems.push(`${what(el)} does not show that it has the focus`);
    el.blur();
  }
  return problems;
})();
