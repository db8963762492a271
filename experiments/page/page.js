// The interface of the page: the drawing, the reading, and the controls.
"use strict";

const PEN = 48; // width of a stroke, of the 560 pixels of the drawing area
const STEP = 60; // milliseconds between two rows of the animation

const model = JSON.parse(document.getElementById("model").textContent);
const network = unpack(model.network, decode(model.weights, model.dtype));
const examples = model.examples.map(imageOf);

const part = (id) => document.getElementById(id);
const [pad, seen, heat] = [part("pad"), part("seen"), part("heat")];
const pen = pad.getContext("2d", { willReadFrequently: true });
const calm = matchMedia("(prefers-reduced-motion: reduce)");
const dark = matchMedia("(prefers-color-scheme: dark)");

let strokes = []; // each a list of points [x, y]
let drawing = null; // the pointer that draws, or null
let image = null; // rows of pixels in 0..255, or null before the first stroke
let probabilities = []; // of each digit after each row of the image
let timer = null; // of the animation

// ---- The drawing ------------------------------------------------------------------------------

function drawStrokes() {
  pen.clearRect(0, 0, pad.width, pad.height);
  pen.strokeStyle = getComputedStyle(pad).color;
  pen.lineWidth = PEN;
  pen.lineCap = pen.lineJoin = "round";
  for (const [first, ...others] of strokes) {
    pen.beginPath();
    pen.moveTo(...first);
    pen.lineTo(first[0] + 0.01, first[1]); // so that a single point is a dot
    for (const point of others) pen.lineTo(...point);
    pen.stroke();
  }
}

/** Returns the amount of ink at each pixel of the drawing, which is its opacity. */
function inkOfDrawing() {
  const { data, width, height } = pen.getImageData(0, 0, pad.width, pad.height);
  return Array.from({ length: height }, (_, y) =>
    Float64Array.from({ length: width }, (_, x) => data[4 * (y * width + x) + 3] / 255),
  );
}

function pointOf(event) {
  const box = pad.getBoundingClientRect();
  return [
    ((event.clientX - box.left) * pad.width) / box.width,
    ((event.clientY - box.top) * pad.height) / box.height,
  ];
}

pad.addEventListener("pointerdown", (event) => {
  if (drawing !== null || event.button !== 0) return;
  drawing = event.pointerId;
  pad.setPointerCapture(drawing);
  strokes.push([pointOf(event)]);
  drawStrokes();
});
pad.addEventListener("pointermove", (event) => {
  if (event.pointerId !== drawing) return;
  strokes.at(-1).push(pointOf(event));
  drawStrokes();
});
for (const end of ["pointerup", "pointercancel"]) {
  pad.addEventListener(end, (event) => {
    if (event.pointerId !== drawing) return;
    drawing = null;
    readDrawing();
  });
}

/** Removes all strokes but the first ones, and reads what is left. */
function keepStrokes(count) {
  if (drawing !== null) return;
  strokes = strokes.slice(0, count);
  drawStrokes();
  readDrawing();
}

part("undo").addEventListener("click", () => keepStrokes(strokes.length - 1));
part("clear").addEventListener("click", () => keepStrokes(0));
document.addEventListener("keydown", (event) => {
  if (event.key !== "z" || !(event.ctrlKey || event.metaKey) || !strokes.length) return;
  event.preventDefault();
  keepStrokes(strokes.length - 1);
});
dark.addEventListener("change", () => {
  drawStrokes();
  show();
});

// ---- The reading ------------------------------------------------------------------------------

function readDrawing() {
  read(mnistStyle(inkOfDrawing()));
}

/** Reads an image and shows how; null shows an empty page. */
function read(pixels) {
  image = pixels;
  probabilities = image ? beliefs(network, image) : [];
  part("undo").disabled = !strokes.length;
  part("clear").disabled = part("row").disabled = part("play").disabled = !image;
  stop();
  part("row").value = SIDE;
  show();
  if (image && !calm.matches) play();
}

/** Shows image, heat map and answer up to the row of the slider. */
function show() {
  const row = Number(part("row").value);
  const ink = getComputedStyle(heat).color.match(/\d+/g).map(Number);
  paint(seen, (y, x) => {
    const pixel = image ? image[y][x] : 0;
    return [pixel, pixel, pixel, y < row ? 255 : 90];
  });
  paint(heat, (y, x) => [...ink, y < row && image ? 255 * probabilities[y][x] : 0]);
  part("number").textContent = row;
  part("row").setAttribute("aria-valuetext", image ? `row ${row}: ${answerAt(row)}` : `row ${row}`);
  part("cursor").hidden = !image;
  part("cursor").style.top = `${((row - 1) / SIDE) * seen.offsetHeight}px`;
  part("cursor").style.height = `${seen.offsetHeight / SIDE}px`;
  const best = image ? argmax(probabilities[row - 1]) : null;
  [...part("digits").children].forEach((digit, number) =>
    digit.classList.toggle("answer", number === best),
  );
  part("answer").ariaBusy = timer !== null; // so that the animation is not read aloud
  if (image) {
    part("answer").innerHTML = `<b>${best}</b> ${percentAt(row)}`;
    if (row < SIDE) part("answer").append(` after row ${row}`);
  } else {
    part("answer").textContent = "Draw a digit, or choose an image.";
  }
  [...part("examples").children].forEach((button, number) => {
    button.ariaPressed = examples[number] === image;
  });
}

function answerAt(row) {
  return `${argmax(probabilities[row - 1])}, ${percentAt(row)}`;
}

function percentAt(row) {
  const largest = Math.max(...probabilities[row - 1]);
  return `${(100 * largest).toFixed(1)} %`;
}

function argmax(values) {
  return values.indexOf(Math.max(...values));
}

/** Sets each pixel of a canvas to a color [red, green, blue, opacity], numbers in 0..255. */
function paint(canvas, color) {
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  for (let y = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++) pixels.data.set(color(y, x), 4 * (y * canvas.width + x));
  }
  context.putImageData(pixels, 0, 0);
}

// ---- The animation ----------------------------------------------------------------------------

function play() {
  const slider = part("row");
  if (Number(slider.value) === SIDE) slider.value = 1;
  part("play").textContent = "Pause";
  timer = setInterval(() => {
    slider.value = Number(slider.value) + 1;
    if (Number(slider.value) === SIDE) stop();
    show();
  }, STEP);
  show();
}

function stop() {
  clearInterval(timer);
  timer = null;
  part("play").textContent = "Play";
}

part("play").addEventListener("click", () => {
  if (timer === null) return play();
  stop();
  show();
});
part("row").addEventListener("input", () => {
  stop();
  show();
});
addEventListener("resize", show);

// ---- The start --------------------------------------------------------------------------------

/** Returns the rows of an image that is stored as base64. */
function imageOf(text) {
  const bytes = bytesOf(text);
  return blankImage().map((_, y) => Array.from(bytes.subarray(SIDE * y, SIDE * (y + 1))));
}

part("network").textContent = model.description;
for (let digit = 0; digit < 10; digit++) {
  part("digits").append(Object.assign(document.createElement("span"), { textContent: digit }));
}
examples.forEach((example, number) => {
  const button = Object.assign(document.createElement("button"), { type: "button" });
  button.setAttribute("aria-label", `Test image ${number + 1}`);
  const picture = Object.assign(document.createElement("canvas"), { width: SIDE, height: SIDE });
  paint(picture, (y, x) => [example[y][x], example[y][x], example[y][x], 255]);
  button.append(picture);
  button.addEventListener("click", () => {
    if (drawing !== null) return;
    strokes = [];
    drawStrokes();
    read(example);
  });
  part("examples").append(button);
});
read(null);
