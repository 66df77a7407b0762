// Returns what is wrong with the page that is open, a line each. Arguments: the screen's width, a callback.
const [width, done] = [arguments[0], arguments[arguments.length - 1]];
const LEAST_LETTERS = 11;
const LEAST_CONTRAST = 4.5;
const faults = new Set();

// As [red, green, blue, alpha], what CSS writes as rgb(), rgba() or with the name of a system colour.
function colour(text) {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d");
  canvas.fillStyle = text;
  canvas.fillRect(0, 0, 1, 1);
  const [red, green, blue, alpha] = canvas.getImageData(0, 0, 1, 1).data;
  return [red, green, blue, alpha / 255];
}

const over = (above, below) => [
  ...[0, 1, 2].map((place) => above[place] * above[3] + below[place] * (1 - above[3])),
  1,
];

// What stands for an empty page in the colour scheme that is on.
function paper() {
  const probe = document.createElement("div");
  probe.style.backgroundColor = "Canvas";
  document.body.append(probe);
  const found = colour(getComputedStyle(probe).backgroundColor);
  probe.remove();
  return found;
}

function ancestors(element) {
  const found = [];
  for (let each = element; each; each = each.parentElement) found.unshift(each);
  return found;
}

function contrast(element) {
  let below = PAPER;
  let opacity = 1;
  for (const each of ancestors(element)) {
    const style = getComputedStyle(each);
    below = over(colour(style.backgroundColor), below);
    opacity *= Number(style.opacity);
  }
  const letters = colour(getComputedStyle(element).color);
  letters[3] *= opacity;
  const [light, dark] = [over(letters, below), below].map(luminance).sort((one, other) => other - one);
  return (light + 0.05) / (dark + 0.05);
}

// https://www.w3.org/TR/WCAG22/#dfn-relative-luminance
function luminance(shade) {
  const [red, green, blue] = shade.slice(0, 3).map((part) => {
    const share = part / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

const scrolls = (element) =>
  ancestors(element).some(
    (each) => each !== document.documentElement && /auto|scroll/.test(getComputedStyle(each).overflowX),
  );

const PAPER = paper();

function lookAtBars() {
  for (const bar of document.querySelectorAll("svg.bar")) {
    const row = bar.closest("tr").textContent.trim();
    const box = bar.getBoundingClientRect();
    if (box.width < 60 || box.height < 8) faults.add(`bar drawn ${box.width} x ${box.height}: ${row}`);
    for (const part of bar.children) {
      const drawn = part.getBoundingClientRect();
      if (drawn.left < box.left - 1 || drawn.right > box.right + 1) faults.add(`bar beyond its place: ${row}`);
    }
  }
}

async function lookAtPictures() {
  const pictures = [...document.querySelectorAll("img, svg:not(.bar)")];
  if (!pictures.length) faults.add("no picture");
  for (const picture of pictures) {
    const name = picture.getAttribute("alt") || picture.getAttribute("aria-label") || picture.tagName;
    const box = picture.getBoundingClientRect();
    if (box.width < 100 || box.height < 50) faults.add(`picture drawn ${box.width} x ${box.height}: ${name}`);
    if (box.left < 0 || box.right > width + 0.5) faults.add(`picture wider than the screen: ${name}`);
    if (picture.tagName !== "IMG") continue;
    if (!picture.alt) faults.add("picture without a description");
    try {
      await picture.decode();
      if (!picture.complete || !picture.naturalWidth) throw new Error();
    } catch {
      faults.add(`picture cannot be drawn: ${name}`);
    }
  }
}

function lookAtText() {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode;
    const element = text.parentElement;
    const said = text.data.trim();
    if (!said || !element.checkVisibility() || element.closest("script, style, svg")) continue;
    const size = parseFloat(getComputedStyle(element).fontSize);
    if (size < LEAST_LETTERS) faults.add(`letters of ${size} pixels: ${said}`);
    if (contrast(element) < LEAST_CONTRAST) faults.add(`contrast of ${contrast(element).toFixed(1)}: ${said}`);
    const range = document.createRange();
    range.selectNodeContents(text);
    if (range.getBoundingClientRect().right > width + 0.5 && !scrolls(element)) faults.add(`cut off: ${said}`);
    if (element.closest("td, th")) lookForBrokenWords(text, range);
  }
}

function lookForBrokenWords(text, range) {
  for (const { 0: word, index } of text.data.matchAll(/[^\s-]{2,20}(?=\s|-|$)/g)) {
    if (index && !/[\s-]/.test(text.data[index - 1])) continue;
    range.setStart(text, index);
    range.setEnd(text, index + word.length);
    if (new Set([...range.getClientRects()].map((line) => line.top)).size > 1) faults.add(`broken word: ${word}`);
  }
}

document.querySelectorAll("details").forEach((part) => (part.open = true));
lookAtPictures().then(() => {
  lookAtBars();
  const across = document.scrollingElement.scrollWidth;
  if (across > width) faults.add(`page of ${across} pixels across on a screen of ${width}`);
  lookAtText();
  done([...faults]);
});
