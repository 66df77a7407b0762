"""Image files of every kind that may turn up, as bytes, for the tests of decoding, scanning and loading."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageCms, features

HEIGHT, WIDTH = 93, 121


def picture(height=HEIGHT, width=WIDTH, channels=3, seed=0):
    """Return smooth random colours, uint8 [height, width, channels], of at most 4 channels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 4), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))[..., :channels].copy()


def encoded(image, kind, **options):
    """Return an image (or array) as the bytes of a file."""
    stream = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(stream, kind, **options)
    return stream.getvalue()


def npy(values):
    """Return an array as the bytes of a .npy file."""
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def orientation(value):
    """Return EXIF data that says how the stored image is rotated."""
    exif = Image.Exif()
    exif[0x112] = value
    return exif


def png16(values, colour_type):
    """Return a PNG of 16 bits a channel; colour types 0, 2, 4 and 6 are gray, RGB, gray + alpha and RGBA."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(*values.shape[1::-1], 16, colour_type, zlib.compress(rows))


def png(width, height, bits, colour_type, compressed):
    """Return a PNG of rows that are compressed already."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", compressed), (b"IEND", b"")]
    chunks = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def accepted():
    """Return the common kinds, that must decode alike everywhere, as {name: bytes}."""
    colour, gray = Image.fromarray(picture()), Image.fromarray(picture()).convert("L")
    clear = Image.fromarray(picture(channels=4))
    gray_clear = Image.merge("LA", (gray, clear.getchannel("A")))
    palette = colour.quantize(64)
    deep = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH, 4)).astype(np.uint16)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    files = {f"jpeg exif {value}": encoded(colour, "JPEG", exif=orientation(value)) for value in range(1, 9)}
    files |= {f"jpeg sampling {value}": encoded(colour, "JPEG", quality=80, subsampling=value) for value in range(3)}
    files |= {
        "jpeg progressive": encoded(colour, "JPEG", progressive=True),
        "jpeg gray": encoded(gray, "JPEG"),
        "jpeg cmyk": encoded(colour.convert("CMYK"), "JPEG"),
        "jpeg stored as rgb": encoded(colour, "JPEG", keep_rgb=True),
        "jpeg profile": encoded(colour, "JPEG", icc_profile=profile),
        "jpeg one pixel": encoded(colour.resize((1, 1)), "JPEG"),
        "jpeg with junk after it": encoded(colour, "JPEG") + b"junk" * 50,
        "mpo": encoded(colour, "MPO", save_all=True, append_images=[colour]),
        "png exif": encoded(colour, "PNG", exif=orientation(6)),
        "png rgba": encoded(clear, "PNG"),
        "png gray": encoded(gray, "PNG"),
        "png gray alpha": encoded(gray_clear, "PNG"),
        "png palette": encoded(palette, "PNG"),
        "png palette transparent": encoded(palette, "PNG", transparency=3),
        "png palette 2 bits": encoded(colour.quantize(4), "PNG", bits=2),
        "png bilevel": encoded(gray.convert("1"), "PNG"),
        "png 16 gray": png16(deep[..., 0], 0),
        "png 16 rgb": png16(deep[..., :3], 2),
        "png 16 gray alpha": png16(deep[..., :2], 4),
        "png 16 rgba": png16(deep, 6),
        "webp": encoded(colour, "WEBP"),
        "webp lossless": encoded(colour, "WEBP", lossless=True),
        "webp rgba": encoded(clear, "WEBP"),
        "webp profile": encoded(colour, "WEBP", icc_profile=profile),
        "bmp": encoded(colour, "BMP"),
        "bmp palette": encoded(palette, "BMP"),
        "bmp gray": encoded(gray, "BMP"),
        "tiff": encoded(colour, "TIFF"),
        "tiff exif": encoded(colour, "TIFF", exif=orientation(6)),
        "tiff rgba": encoded(clear, "TIFF"),
        "tiff gray": encoded(gray, "TIFF"),
        "tiff palette": encoded(palette, "TIFF"),
        "tiff 16 gray": encoded(deep[..., 0], "TIFF"),
        "tiff lzw": encoded(colour, "TIFF", compression="tiff_lzw"),
        "tiff deflate": encoded(colour, "TIFF", compression="tiff_adobe_deflate"),
        "ppm": encoded(colour, "PPM"),
        "pgm": encoded(gray, "PPM"),
        "pgm 16": b"P5\n%d %d\n65535\n" % (WIDTH, HEIGHT) + deep[..., 0].astype(">u2").tobytes(),
    }
    return files


def uncommon():
    """Return the kinds that are accepted too, but that decoders may treat each in its way, as {name: bytes}."""
    colour, gray = Image.fromarray(picture()), Image.fromarray(picture()).convert("L")
    raw = (np.arange(HEIGHT * (WIDTH + WIDTH % 2)) % 0x8000).astype("<u2").tobytes()
    info = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, 16, 0, len(raw), 0, 0, 0, 0)
    files = {
        "gif": encoded(colour.quantize(64), "GIF"),
        "animated gif": encoded(colour.quantize(64), "GIF", save_all=True, append_images=[gray]),
        "jpeg 2000": encoded(colour, "JPEG2000"),
        "animated webp": encoded(colour, "WEBP", save_all=True, append_images=[gray]),
        "animated png": encoded(colour, "PNG", save_all=True, append_images=[gray]),
        "webp exif": encoded(colour, "WEBP", exif=orientation(6)),
        "tiff bilevel": encoded(gray.convert("1"), "TIFF"),
        "tiff cmyk": encoded(colour.convert("CMYK"), "TIFF"),
        "bmp 16 bits": b"BM" + struct.pack("<IHHI", 54 + len(raw), 0, 0, 54) + info + raw,
        "ppm text": b"P3\n9 8\n255\n" + b"".join(b"%d " % (value % 256) for value in range(216)),
        "pgm maximum 100": b"P5\n9 8\n100\n" + bytes(range(72)),
    }
    return files | ({"avif": encoded(colour, "AVIF")} if features.check("avif") else {})


def refused():
    """Return whole files of kinds that are set aside, as {name: (bytes, what the reason says)}."""
    colour, gray = Image.fromarray(picture()), Image.fromarray(picture()).convert("L")
    different = "2 images of different size or type in one file (93 x 121 x 3 uint8, 93 x 121 uint8), wanted one"
    return {
        "ico": (encoded(colour, "ICO"), "ICO is not supported: save it as PNG"),
        "tiff lab": (encoded(colour.convert("LAB"), "TIFF"), "TIFF of mode LAB is no photo"),
        "tiff pages": (encoded(colour, "TIFF", save_all=True, append_images=[gray]), different),
    }


def write(folder, files):
    """Write {name: bytes} into a folder and return the file names, in the same order."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return list(files)
