"""Picture files of all kinds, sizes and shapes, with nothing asked: what predicts the vision score learns
from them.

`assort(seed, index)` is a pure function and gives the same picture on every machine: signs, charts, pages of
print of all sizes, textures, flat shapes, things on plain ground, and scenes with the depth, light and grain
of photographs. Knows no models.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from m3score.calibration.drawings.backdrops import any_colour
from m3score.calibration.drawings.textures import blank, gradient
from m3score.calibration.drawings.unasked.lookalikes import LOOKALIKES, backdrop, plot
from m3score.calibration.drawings.unasked.pages import printed
from m3score.calibration.drawings.variations import vary

Size = tuple[int, int]


def assort(seed: int, index: int) -> bytes:
    """The `index`-th picture of the stream `seed`: the content of a JPEG or PNG file."""
    rng = np.random.default_rng((seed, index, 2))
    kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    if kind == "drawing":
        return vary(seed, index).content
    image = _PAINTERS[kind](rng, _size(rng, _LARGEST.get(kind, 440)))
    if kind == "nothing" and rng.random() < 0.7:  # left as it is, but for its size
        size = np.exp(rng.uniform(np.log(48), np.log(2400), 2))
        return _as_file(rng, image.resize((round(size[0]), round(size[1])), Image.Resampling.BICUBIC))
    if kind in _LARGEST:
        return _as_file(rng, _finished(rng, image, 0.12))
    if kind != "thing" and rng.random() < 0.06:  # a picture within a page
        image = ImageOps.expand(image, int(image.width * rng.uniform(0.02, 0.2)), any_colour(rng))
    image = _finished(rng, image, 0.3)
    if rng.random() < 0.3:
        scale = rng.uniform(1, 2.2)
        image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
    return _as_file(rng, image)


def _size(rng: np.random.Generator, largest: float) -> Size:
    """(width, height): up to `largest` pixels a side on the average, up to twice as long as wide."""
    side = float(np.exp(rng.uniform(np.log(largest / 2.5), np.log(largest))))
    stretch = float(np.exp(rng.uniform(-np.log(2), np.log(2)))) if rng.random() < 0.8 else 1.0
    return max(32, round(side * stretch**0.5)), max(32, round(side / stretch**0.5))


# ---- kinds ----------------------------------------------------------------------------------------------


def _fitted(image: Image.Image, size: Size) -> Image.Image:
    return ImageOps.fit(image, size, Image.Resampling.BICUBIC)


def _lookalike(rng: np.random.Generator, size: Size) -> Image.Image:
    """A texture, foliage, a fence, scribbles, clutter."""
    side = int(np.exp(rng.uniform(np.log(200), np.log(600))))
    return _fitted(LOOKALIKES[int(rng.integers(len(LOOKALIKES)))](rng, side), size)


def _nothing(rng: np.random.Generator, size: Size) -> Image.Image:
    """One colour, or a gradient."""
    return (blank if rng.random() < 0.5 else gradient)(rng, 200).resize(size)


def _page(rng: np.random.Generator, size: Size) -> Image.Image:
    """Print on paper, or on anything."""
    paper = _scene(rng, size) if rng.random() < 0.1 else None
    return _scanned(rng, size, "page", paper)


def _receipt(rng: np.random.Generator, size: Size) -> Image.Image:
    """A narrow strip of print, by itself or on a table."""
    narrow = rng.uniform(0.3, 0.8)
    size = (int(max(size) * narrow), max(size))
    strip = _scanned(rng, size, "receipt")
    if rng.random() < 0.6:
        strip = strip.convert("L").convert("RGB")
    if rng.random() < 0.5:  # the paper's grain, as a scanner sees it
        strip = _grained(rng, strip, float(np.exp(rng.uniform(0, 2.3))))
    if rng.random() < 0.7:
        return strip
    width, height = int(size[0] * rng.uniform(1, 1.6)), int(size[1] * rng.uniform(1, 1.3))
    table = (0, 0, 0) if rng.random() < 0.4 else (255, 255, 255) if rng.random() < 0.4 else any_colour(rng)
    image = Image.new("RGB", (width, height), table)
    image.paste(strip, (int((width - size[0]) * rng.random()), int((height - size[1]) * rng.random())))
    return image


def _chart(rng: np.random.Generator, size: Size) -> Image.Image:
    """A chart with its words and numbers, mostly wider than high."""
    size = (max(size), min(size)) if rng.random() < 0.75 else size
    return printed(rng, size, "chart")


def _scanned(
    rng: np.random.Generator, size: Size, layouts: str, paper: Image.Image | None = None
) -> Image.Image:
    """Printed, and now and then made smaller, lit from a side, turned a little."""
    finer = rng.uniform(1, 2) if paper is None and rng.random() < 0.5 else 1.0
    page = printed(rng, (int(size[0] * finer), int(size[1] * finer)), layouts, paper)
    page = page.resize(size, Image.Resampling.BICUBIC) if finer > 1 else page
    if rng.random() < 0.15:
        page = _lit(rng, page)
    if rng.random() < 0.2:
        page = page.rotate(float(rng.normal(0, 2)), Image.Resampling.BICUBIC, fillcolor=any_colour(rng))
    return page


def _flat(rng: np.random.Generator, size: Size) -> Image.Image:
    """Few flat shapes on plain ground, lines and bars: posters, logos, constructivist paintings."""
    image = Image.new("RGB", size, any_colour(rng))
    brush = ImageDraw.Draw(image)
    palette = [any_colour(rng) for _ in range(int(rng.integers(1, 7)))]
    for _ in range(int(np.exp(rng.uniform(0, np.log(60))))):
        colour = palette[int(rng.integers(len(palette)))]
        centre, reach = (
            rng.uniform(0, 1, 2) * size,
            min(size) * np.exp(rng.uniform(np.log(0.02), np.log(0.6))),
        )
        kind = rng.random()
        if kind < 0.3:
            brush.polygon(_blob(rng, centre, reach, int(rng.integers(3, 6))), fill=colour)
        elif kind < 0.5:
            box = _box(centre, reach, rng.uniform(0.2, 1))
            brush.ellipse(box, fill=colour if rng.random() < 0.6 else None, outline=colour, width=2)
        elif kind < 0.75:
            turned, thick = rng.uniform(0, np.pi), max(1, reach * rng.uniform(0.03, 0.6))
            along = reach * np.array([np.cos(turned), np.sin(turned)])
            brush.line([tuple(centre - along), tuple(centre + along)], fill=colour, width=int(thick))
        else:
            brush.rectangle(_box(centre, reach, rng.uniform(0.1, 1)), fill=colour)
    return image


def _thing(rng: np.random.Generator, size: Size) -> Image.Image:
    """One thing, or a few, on plain ground: a product, an icon, an ornament."""
    ground = (255, 255, 255) if rng.random() < 0.6 else any_colour(rng)
    image = Image.new("RGB", size, ground)
    for _ in range(1 + int(rng.geometric(0.5))):
        centre = (0.5 + rng.normal(0, 0.12, 2)) * size
        reach = min(size) * rng.uniform(0.1, 0.45)
        _paste_thing(rng, image, centre, reach, 0.7)
    return image


def _scene(rng: np.random.Generator, size: Size) -> Image.Image:
    """Grounds behind one another, things large and small in front of them, all of it lit."""
    image = _fitted(backdrop(rng, 336), size) if rng.random() < 0.5 else _nothing(rng, size)
    soft = float(np.exp(rng.uniform(np.log(0.4), np.log(12)))) * float(rng.random() < 0.5)
    for _ in range(int(rng.integers(0, 4))):
        image.paste(_surface(rng, size), (0, 0), _ground(rng, size))
    if soft:
        image = image.filter(ImageFilter.GaussianBlur(soft * min(size) / 336))
    count = int(np.exp(rng.uniform(0, np.log(70))))
    largest = rng.uniform(0.08, 0.5)
    reaches = np.sort(largest * rng.uniform(0.1, 1, count) ** rng.uniform(0.5, 3))
    order = reaches if rng.random() < 0.5 else reaches[::-1]
    textured = rng.uniform(0, 0.8)
    for reach in order:
        _paste_thing(rng, image, rng.uniform(0, 1, 2) * size, reach * min(size), textured)
    return _lit(rng, image) if rng.random() < 0.8 else image


def _crowd(rng: np.random.Generator, size: Size) -> Image.Image:
    """Many things of a kind: fruit, people far off, windows, stones."""
    image = _surface(rng, size)
    reach = min(size) * float(np.exp(rng.uniform(np.log(0.02), np.log(0.15))))
    few = [_thing_of(rng, max(4, int(2 * reach)), 0.5) for _ in range(int(rng.integers(1, 5)))]
    for _ in range(int(min(400, rng.uniform(0.3, 2) * size[0] * size[1] / (4 * reach**2)))):
        picture, mask = few[int(rng.integers(len(few)))]
        scale, turn = rng.uniform(0.6, 1.3), float(rng.normal(0, 25))
        side = max(3, int(picture.width * scale))
        picture, mask = (one.resize((side, side)).rotate(turn) for one in (picture, mask))
        picture = picture.point([int(v) for v in np.clip(np.arange(256) * rng.uniform(0.6, 1.3), 0, 255)] * 3)
        left, top = rng.uniform(0, 1, 2) * size - side / 2
        image.paste(picture, (int(left), int(top)), mask)
    return _lit(rng, image)


def _room(rng: np.random.Generator, size: Size) -> Image.Image:
    """Walls, floor and ceiling in perspective, with furniture that is boxes, and pictures on the walls."""
    width, height = size
    image = Image.new("RGB", size)
    left, right = width * rng.uniform(0, 0.4), width * rng.uniform(0.6, 1)
    top, bottom = height * rng.uniform(0, 0.35), height * rng.uniform(0.55, 0.9)
    walls = (
        [(0, 0), (left, top), (left, bottom), (0, height)],
        [(width, 0), (right, top), (right, bottom), (width, height)],
        [(0, 0), (left, top), (right, top), (width, 0)],
        [(0, height), (left, bottom), (right, bottom), (width, height)],
        [(left, top), (right, top), (right, bottom), (left, bottom)],
    )
    for corners in walls:
        mask = Image.new("L", size, 0)
        ImageDraw.Draw(mask).polygon(corners, fill=255)
        surface = _surface(rng, size) if rng.random() < 0.4 else Image.new("RGB", size, any_colour(rng))
        image.paste(surface, (0, 0), mask)
    for _ in range(int(rng.integers(2, 40))):
        centre = np.array([rng.uniform(0, width), rng.uniform(0.2, 1) * height])
        reach = min(size) * float(np.exp(rng.uniform(np.log(0.02), np.log(0.25))))
        if rng.random() < 0.7:
            box = _box(centre, reach, rng.uniform(0.2, 1))
            part = Image.new("L", size, 0)
            ImageDraw.Draw(part).rectangle(box, fill=255)
            surface = _surface(rng, size) if rng.random() < 0.3 else Image.new("RGB", size, any_colour(rng))
            image.paste(surface, (0, 0), part)
        else:
            _paste_thing(rng, image, centre, reach, 0.3)
    return _lit(rng, image)


def _collage(rng: np.random.Generator, size: Size) -> Image.Image:
    """Several pictures beside each other, or words over a picture: advertisements, web pages, diagrams."""
    if rng.random() < 0.4:
        return printed(rng, size, "words", _scene(rng, size))
    image = Image.new("RGB", size, any_colour(rng) if rng.random() < 0.5 else (255, 255, 255))
    for _ in range(int(rng.integers(2, 8))):
        part = (int(size[0] * rng.uniform(0.15, 0.6)), int(size[1] * rng.uniform(0.15, 0.6)))
        name = str(rng.choice(["scene", "flat", "page", "chart", "thing", "lookalike", "plot"]))
        picture = _PAINTERS[name](rng, (max(16, part[0]), max(16, part[1])))
        left, top = rng.uniform(0, 1, 2) * np.subtract(size, part)
        image.paste(picture, (int(left), int(top)))
    return image


def _diagram(rng: np.random.Generator, size: Size) -> Image.Image:
    """Lines, dots and hatching: plots and maps without words."""
    return _fitted(plot(rng, 336), size)


_PAINTERS: dict[str, Callable[[np.random.Generator, Size], Image.Image]] = {
    "nothing": _nothing,
    "lookalike": _lookalike,
    "page": _page,
    "receipt": _receipt,
    "chart": _chart,
    "flat": _flat,
    "thing": _thing,
    "scene": _scene,
    "crowd": _crowd,
    "room": _room,
    "collage": _collage,
    "plot": _diagram,
}
_LARGEST = {"page": 1000, "receipt": 1100, "chart": 900}
"""Pixels a side up to which print is drawn: at most so large are its letters."""
SHARES = {
    "drawing": 0.07,
    "nothing": 0.05,
    "lookalike": 0.1,
    "page": 0.09,
    "receipt": 0.1,
    "chart": 0.13,
    "flat": 0.06,
    "thing": 0.06,
    "scene": 0.17,
    "crowd": 0.05,
    "room": 0.05,
    "collage": 0.05,
    "plot": 0.02,
}
"""Probability of each kind."""


# ---- parts ----------------------------------------------------------------------------------------------


def _box(centre: np.ndarray, reach: float, flat: float) -> tuple[float, float, float, float]:
    x, y = centre
    return x - reach, y - reach * flat, x + reach, y + reach * flat


def _blob(
    rng: np.random.Generator, centre: np.ndarray, reach: float, corners: int
) -> list[tuple[float, float]]:
    """Corners of a shape about a centre, as far as `reach` from it."""
    turns = np.sort(rng.uniform(0, 2 * np.pi, corners))
    far = reach * rng.uniform(0.5, 1, corners)
    points = np.asarray(centre) + far[:, None] * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    return [(float(x), float(y)) for x, y in points]


def _smooth(rng: np.random.Generator, size: Size, cells: int) -> Image.Image:
    """A grey picture that changes over so many cells, 0 to 255."""
    values = rng.uniform(0, 255, (max(2, cells), max(2, cells))).astype(np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


def _surface(rng: np.random.Generator, size: Size) -> Image.Image:
    """What something is made of: any texture, stretched, strong or faint."""
    side = int(rng.choice([64, 100, 150, 220]))
    image = _fitted(backdrop(rng, side), size)
    if rng.random() < 0.6:
        image = Image.blend(Image.new("RGB", size, any_colour(rng)), image, float(rng.uniform(0.05, 0.6)))
    return image


def _ground(rng: np.random.Generator, size: Size) -> Image.Image:
    """A mask: everything below a wavy horizon, or scattered patches."""
    width, height = size
    if rng.random() < 0.6:
        mask = Image.new("L", size, 0)
        x = np.linspace(0, width, 24)
        waves = np.cumsum(rng.normal(0, 1, 24)) * height * rng.uniform(0, 0.06)
        y = height * rng.uniform(0.1, 0.9) + waves
        points = [(float(a), float(b)) for a, b in zip(x, y, strict=True)]
        ImageDraw.Draw(mask).polygon([*points, (width, height), (0, height)], fill=255)
        return mask
    edge, sharp = rng.uniform(80, 170), rng.uniform(1, 12)
    return _smooth(rng, size, int(rng.integers(2, 14))).point(
        [int(v) for v in np.clip((np.arange(256) - edge) * sharp, 0, 255)]
    )


def _thing_of(rng: np.random.Generator, side: int, textured: float) -> tuple[Image.Image, Image.Image]:
    """Something round, angular or branched in a square, shaded; with its mask."""
    mask = Image.new("L", (side, side), 0)
    brush, centre, reach = ImageDraw.Draw(mask), np.array([side / 2, side / 2]), side / 2
    for _ in range(1 + int(rng.geometric(0.6))):
        kind, away = rng.random(), centre + rng.normal(0, 0.15, 2) * side
        if kind < 0.35:
            brush.ellipse(_box(away, reach * rng.uniform(0.3, 0.9), rng.uniform(0.3, 1)), fill=255)
        elif kind < 0.8:
            brush.polygon(_blob(rng, away, reach, int(rng.integers(3, 12))), fill=255)
        else:
            for _ in range(int(rng.integers(1, 6))):
                end = tuple(float(v) for v in centre + rng.normal(0, 0.3, 2) * side)
                brush.line([tuple(away), end], fill=255, width=max(1, int(side * rng.uniform(0.02, 0.15))))
    if rng.random() < textured:
        picture = _surface(rng, (side, side))
    else:
        picture = Image.new("RGB", (side, side), any_colour(rng))
    if rng.random() < 0.6:
        for _ in range(int(rng.integers(1, 6))):  # parts: eyes, buttons, folds
            spot = rng.uniform(0.2, 0.8, 2) * side
            part = ImageDraw.Draw(picture)
            if rng.random() < 0.5:
                part.ellipse(_box(spot, side * rng.uniform(0.02, 0.2), 0.8), fill=any_colour(rng))
            else:
                part.line(
                    [tuple(spot), tuple(rng.uniform(0.2, 0.8, 2) * side)], fill=any_colour(rng), width=2
                )
    return (_lit(rng, picture) if side > 24 else picture), mask


def _paste_thing(
    rng: np.random.Generator, image: Image.Image, centre: np.ndarray, reach: float, textured: float
) -> None:
    side = max(4, int(2 * reach))
    picture, mask = _thing_of(rng, side, textured)
    place = (int(centre[0] - side / 2), int(centre[1] - side / 2))
    if rng.random() < 0.3:  # a shadow
        dark = mask.filter(ImageFilter.GaussianBlur(side * 0.05)).point([v // 2 for v in range(256)])
        image.paste((0, 0, 0), (place[0] + side // 12, place[1] + side // 12), dark)
    if rng.random() < 0.2:
        mask = mask.filter(ImageFilter.GaussianBlur(side * rng.uniform(0.005, 0.05)))
    image.paste(picture, place, mask)


def _lit(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Light and shadow that change slowly."""
    light = np.asarray(_smooth(rng, image.size, int(rng.integers(2, 6))), np.float32)[..., None] / 255
    strength = rng.uniform(0.1, 1)
    values = np.asarray(image, np.float32) * (1 - strength + strength * (0.3 + 1.2 * light))
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


# ---- as pictures come -----------------------------------------------------------------------------------


def _finished(rng: np.random.Generator, image: Image.Image, share: float) -> Image.Image:
    """Some in grey or with softer colours; a share each pale or dark, blurred, grained."""
    if rng.random() < 0.15:
        image = image.convert("L").convert("RGB")
    elif rng.random() < 2 * share:  # drawn colours are louder than those of photographs
        image = ImageEnhance.Color(image).enhance(float(rng.uniform(0.1, 0.9)))
    if rng.random() < share:
        gain, lift, bend = rng.uniform(0.4, 1.2), rng.uniform(-30, 60), rng.uniform(0.6, 1.6)
        curve = np.clip(255 * (np.arange(256) / 255) ** bend * gain + lift, 0, 255).astype(int)
        image = image.point([int(v) for v in curve] * 3)
    if rng.random() < share:
        small = min(image.size) / 336
        image = image.filter(ImageFilter.GaussianBlur(float(np.exp(rng.uniform(-1.2, 1.2))) * small))
    if rng.random() < share:
        image = _grained(rng, image, float(np.exp(rng.uniform(0, 2.7))))
    return image


def _grained(rng: np.random.Generator, image: Image.Image, strength: float) -> Image.Image:
    """With noise of so many grey levels."""
    grain = rng.normal(0, strength, (image.height, image.width, 1))
    noisy = np.asarray(image, np.float32) + grain
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _as_file(rng: np.random.Generator, image: Image.Image) -> bytes:
    content = io.BytesIO()
    if rng.random() < 0.75:
        image.save(content, "JPEG", quality=int(rng.integers(40, 96)))
    else:
        image.save(content, "PNG", compress_level=1)
    return content.getvalue()
