"""Read pictures back, by SVG's rules and without mapsave's own code."""

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

SVG = "{http://www.w3.org/2000/svg}"


@dataclass
class Square:
    """A square as it is drawn: the class of each cell along the curve; None is drawn over."""

    name: str
    side: int
    cells: list[str]


def parsed(picture: str) -> ElementTree.Element:
    root = ElementTree.fromstring(picture)
    assert root.tag == f"{SVG}svg"
    return root


def texts(picture: str) -> list[str]:
    return ["".join(each.itertext()) for each in parsed(picture).iter(f"{SVG}text")]


def squares(picture: str) -> list[Square]:
    """Return the squares of a picture, their cells in the order of the curve."""
    found = []
    for element in parsed(picture).iter(f"{SVG}svg"):
        if element.get("class") != "cells":
            continue
        side = int(element.attrib["viewBox"].split()[2])
        ground = element.find(f"{SVG}rect")
        assert ground is not None
        grid = {(x, y): ground.attrib["class"] for x in range(side) for y in range(side)}
        for path in element.iter(f"{SVG}path"):
            for x, y in _cells(path.attrib["d"]):
                grid[x, y] = path.attrib["class"]
        cells = [grid[_place(side, step)] for step in range(side * side)]
        found.append(Square(element.attrib["data-block"], side, cells))
    return found


def _cells(line: str) -> list[tuple[int, int]]:
    """Return the cells that the lines of a path go through."""
    found, x, y = [], 0, 0
    for command, words in re.findall(r"([Mmh])([^Mmh]*)", line):
        numbers = [int(word) for word in words.split()]
        if command == "M":
            x, y = numbers
        elif command == "m":
            x, y = x + numbers[0], y + numbers[1]
        else:
            found += [(x + step, y) for step in range(numbers[0])]
            x += numbers[0]
    return found


def _place(side: int, step: int) -> tuple[int, int]:
    """Return the place of a step of the Hilbert curve, from the smallest square outwards."""
    x = y = 0
    size = 1
    while size < side:
        right = 1 & step // 2
        down = 1 & (step ^ right)
        if not down:
            if right:
                x, y = size - 1 - x, size - 1 - y
            x, y = y, x
        x, y = x + size * right, y + size * down
        step //= 4
        size *= 2
    return x, y
