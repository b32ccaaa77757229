// A picture with a mask painted over it. The mask travels as the bytes of a grey PNG, both ways:
// white is edited; no bytes at all stand for no mask.
const SHOWN = 512, TINT = [233, 30, 140], MOST_UNDO = 24, MOST_BYTES = 9e6

function make(tag, name, attributes = {}) {
  const node = document.createElement(tag)
  if (name) node.className = name
  for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v)
  return node
}

// Bytes of a trait, whatever kind of view the manager hands over.
function bytesOf(value) {
  if (!value || !value.byteLength) return null
  return value instanceof DataView ? value : new DataView(value.buffer ?? value)
}

// Copy the tint's alpha into grey, or grey into the tint's alpha.
const toGrey = (a, i) => { a[i] = a[i + 1] = a[i + 2] = a[i + 3]; a[i + 3] = 255 }
const toTint = (a, i) => {
  a[i + 3] = Math.max(a[i], a[i + 1], a[i + 2]);
  [a[i], a[i + 1], a[i + 2]] = TINT
}

function converted(image, change) {
  for (let i = 0; i < image.data.length; i += 4) change(image.data, i)
  return image
}

function button(bar, label, hint, act) {
  const b = make("button", "fe-tool", { type: "button", title: hint, "aria-label": hint })
  b.textContent = label
  b.addEventListener("click", act)
  bar.append(b)
  return b
}

function render({ model, el }) {
  const root = make("div", "fe-brush", { "data-lm-suppress-shortcuts": "true" })
  const bar = make("div", "fe-bar"), stage = make("div", "fe-stage", { tabindex: "0" })
  const picture = make("img", "fe-picture", { alt: "the picture to edit", draggable: "false" })
  const canvas = make("canvas", "fe-mask"), ring = make("div", "fe-ring")
  const hint = make("div", "fe-hint")
  stage.append(picture, canvas, ring)
  root.append(bar, stage, hint)
  el.append(root)
  canvas.width = canvas.height = 0   // until the picture is there
  const paint = canvas.getContext("2d", { willReadFrequently: true })
  const undo = []
  let erase = false, last = null, own = null, address = "", sent = 0

  const size = make("input", "fe-size", { type: "range", min: "1", max: "100", step: "1",
                                          "aria-label": "brush size", title: "brush size  [ ]" })
  size.value = "18"
  // The brush is a share of the picture's longer side, so that it fits any picture.
  const radius = () => Math.max(.5, size.value ** 1.5 / 2000 * Math.max(canvas.width, canvas.height))
  const all = () => paint.getImageData(0, 0, canvas.width, canvas.height)
  const empty = () => !all().data.some((v, i) => i % 4 == 3 && v)

  function remember() {
    undo.push(all())
    if (undo.length > MOST_UNDO) undo.shift()
  }

  async function commit() {
    const ticket = ++sent
    let bytes = new DataView(new ArrayBuffer(0))
    if (!empty()) {
      const copy = make("canvas")
      copy.width = canvas.width
      copy.height = canvas.height
      copy.getContext("2d").putImageData(converted(all(), toGrey), 0, 0)
      const blob = await new Promise(done => copy.toBlob(done, "image/png"))
      bytes = new DataView(await blob.arrayBuffer())
    }
    if (ticket != sent) return
    own = bytes
    model.set("mask", bytes)
    model.save_changes()
  }

  async function fromPython() {
    if (!canvas.width) return
    const value = bytesOf(model.get("mask"))
    if (value && own && value.buffer === own.buffer) return
    if (!value && own && !own.byteLength) { own = null; return }
    const ticket = ++sent
    const drawn = value ? await createImageBitmap(new Blob([value], { type: "image/png" })) : null
    if (ticket != sent) return
    remember()
    paint.clearRect(0, 0, canvas.width, canvas.height)
    if (!drawn) return
    paint.imageSmoothingEnabled = false
    paint.drawImage(drawn, 0, 0, canvas.width, canvas.height)
    paint.putImageData(converted(all(), toTint), 0, 0)
  }

  function showPicture() {
    const value = bytesOf(model.get("picture"))
    stage.hidden = !value
    hint.textContent = value ? "Paint where the edit may go. Without paint it may go everywhere."
      : "No picture yet: upload one, name its file, or paste or drop it here."
    URL.revokeObjectURL(address)
    if (!value) return
    address = URL.createObjectURL(new Blob([value], { type: "image/png" }))
    picture.onload = () => {
      const same = canvas.width == picture.naturalWidth && canvas.height == picture.naturalHeight
      if (!same) {
        canvas.width = picture.naturalWidth
        canvas.height = picture.naturalHeight
        undo.length = 0
        own = null
      }
      root.classList.toggle("fe-pixels", Math.max(canvas.width, canvas.height) < SHOWN)
      stage.style.maxWidth = SHOWN * Math.min(1, canvas.width / canvas.height) + "px"
      if (!same) fromPython()
    }
    picture.src = address
  }

  function at(e) {
    const box = canvas.getBoundingClientRect()
    return { x: (e.clientX - box.left) / box.width * canvas.width,
             y: (e.clientY - box.top) / box.height * canvas.height }
  }

  function stroke(from, to) {
    paint.globalCompositeOperation = erase ? "destination-out" : "source-over"
    paint.strokeStyle = paint.fillStyle = `rgb(${TINT})`
    paint.lineCap = paint.lineJoin = "round"
    paint.lineWidth = 2 * radius()
    paint.beginPath()
    paint.moveTo(from.x, from.y)
    paint.lineTo(to.x + (from.x == to.x && from.y == to.y ? .01 : 0), to.y)
    paint.stroke()
    paint.globalCompositeOperation = "source-over"
  }

  function showRing(e) {
    const box = canvas.getBoundingClientRect(), r = radius() * box.width / canvas.width
    ring.style.width = ring.style.height = 2 * r + "px"
    ring.style.left = e.clientX - box.left - r + "px"
    ring.style.top = e.clientY - box.top - r + "px"
    ring.style.display = e.pointerType == "touch" ? "none" : "block"
  }

  canvas.addEventListener("pointerdown", e => {
    if (e.button > 0 || !canvas.width) return
    e.preventDefault()
    stage.focus({ preventScroll: true })
    try { canvas.setPointerCapture(e.pointerId) } catch { }
    remember()
    last = at(e)
    stroke(last, last)
  })
  canvas.addEventListener("pointermove", e => {
    showRing(e)
    if (!last) return
    for (const p of e.getCoalescedEvents?.().length ? e.getCoalescedEvents() : [e]) {
      const next = at(p)
      stroke(last, next)
      last = next
    }
  })
  const lift = () => { if (last) { last = null; commit() } }
  canvas.addEventListener("pointerup", lift)
  canvas.addEventListener("pointercancel", lift)
  canvas.addEventListener("pointerleave", () => { ring.style.display = "none" })

  function changed(change) {
    if (!canvas.width) return
    remember()
    change()
    commit()
  }
  function takeBack() {
    const before = undo.pop()
    if (!before) return
    paint.putImageData(before, 0, 0)
    commit()
  }
  const invert = () => changed(() => paint.putImageData(converted(all(), (a, i) => {
    a[i + 3] = 255 - a[i + 3];
    [a[i], a[i + 1], a[i + 2]] = TINT
  }), 0, 0))
  const clear = () => changed(() => paint.clearRect(0, 0, canvas.width, canvas.height))

  function pick(eraser) {
    erase = eraser
    brush.classList.toggle("fe-on", !erase)
    rubber.classList.toggle("fe-on", erase)
    brush.setAttribute("aria-pressed", !erase)
    rubber.setAttribute("aria-pressed", erase)
  }

  function save() {
    const value = bytesOf(model.get("mask"))
    if (!value) return hint.textContent = "There is no mask to save: paint one first."
    const link = make("a", "", { download: "mask.png" })
    link.href = URL.createObjectURL(new Blob([value], { type: "image/png" }))
    link.click()
    setTimeout(() => URL.revokeObjectURL(link.href), 1000)
  }

  const brush = button(bar, "Paint", "paint (B)", () => pick(false))
  const rubber = button(bar, "Erase", "erase (E)", () => pick(true))
  bar.append(size)
  button(bar, "Undo", "undo (Ctrl+Z)", takeBack)
  button(bar, "Invert", "invert (I)", invert)
  button(bar, "Clear", "clear: edit everywhere", clear)
  button(bar, "Save", "save the mask as a PNG", save)
  pick(false)

  stage.addEventListener("keydown", e => {
    const step = { "[": -4, "]": 4 }[e.key]
    if (step) size.value = +size.value + step
    else if (e.key == "z" && (e.ctrlKey || e.metaKey)) takeBack()
    else if (e.key == "b") pick(false)
    else if (e.key == "e") pick(true)
    else if (e.key == "i") invert()
    else return
    e.preventDefault()
    e.stopPropagation()
  })

  // A picture or a path that is pasted or dropped goes to Python, which reads and checks it.
  async function take(data, e) {
    const file = [...(data?.files ?? [])].find(f => f.type.startsWith("image/"))
    const text = data?.getData("text/plain")?.trim()
    if (!file && !text) return
    e.preventDefault()
    e.stopPropagation()
    if (!file) return model.send({ kind: "path", path: text })
    if (file.size > MOST_BYTES)
      return hint.textContent = `This picture has ${(file.size / 1e6).toFixed(1)} MB, too much `
        + "for the connection to the kernel: give the path of its file instead."
    model.send({ kind: "picture", name: file.name }, undefined, [await file.arrayBuffer()])
  }
  root.setAttribute("tabindex", "-1")
  root.addEventListener("paste", e => take(e.clipboardData, e))
  root.addEventListener("dragover", e => e.preventDefault())
  root.addEventListener("drop", e => take(e.dataTransfer, e))

  model.on("change:picture", showPicture)
  model.on("change:mask", fromPython)
  showPicture()
  model.set("alive", true)
  model.save_changes()
  return () => {
    model.off("change:picture", showPicture)
    model.off("change:mask", fromPython)
    URL.revokeObjectURL(address)
  }
}

export default { render }
