// Makes elements, and shows tables whose cells change only where what they show has changed: so the
// keyboard stays where it is while events come in.

export function element(tag, attributes = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (value === true)
            made.setAttribute(name, "");
        else if (value !== false && value !== null && value !== undefined)
            made.setAttribute(name, value);
    }
    made.append(...children);
    return made;
}

// Return what shows one part: a text, or an object that says what it is.
export function built(part) {
    if (typeof part !== "object")
        return document.createTextNode(part);
    if ("time" in part)
        return element("time", { datetime: part.time, title: part.title }, part.text);
    if ("state" in part)
        return element("span", { class: `state state-${part.kind}` }, part.state);
    if ("act" in part)
        return button(part);
    if ("progress" in part)
        return element("progress", { max: part.of, value: part.progress, "aria-label": part.label });
    if ("failure" in part)
        return failure(part.failure, part.button);
    if ("id" in part)
        return element("code", {}, part.id);
    if ("line" in part)
        return element("div", { class: part.faint ? "faint" : null }, ...part.line.map(built));
    throw new Error(`cannot show ${JSON.stringify(part)}`);
}

// `act` is what is done with the thing named `on`; the label is read with the name of the thing.
function button({ act, on, label, harm }) {
    return element("button", {
        type: "button",
        class: harm ? "harm" : null,
        "data-act": act,
        "data-on": on,
        "aria-label": `${label.replace(/( all)? …$/, "")} ${on}`,
    }, label);
}

// Return what shows an error of the service: message, hint and id, and a button where there is one.
export function failure({ message, hint, id }, then = null) {
    const shown = element("div", { class: "failure" }, element("strong", {}, message));
    if (hint)
        shown.append(element("div", {}, hint));
    if (id)
        shown.append(element("code", { class: "failure-id" }, id));
    if (then !== null)
        shown.append(element("div", {}, button(then)));
    return shown;
}

// Show `parts` in a place, unless it shows them already; keep the focus in it where it was.
export function show(place, parts) {
    const wanted = JSON.stringify(parts);
    if (place.shows === wanted)
        return;
    place.shows = wanted;
    const focused = place.contains(document.activeElement) ? document.activeElement : null;
    place.replaceChildren(...parts.map(built));
    const row = place.closest("tr");
    if (focused !== null)
        focusIn(row ?? place, focused.dataset.act);
    else if (row !== null && row === document.activeElement && buttonIn(row, row.awaits))
        focusIn(row, row.awaits);
}

// Focus the button of a row that does `act`; until there is one, the row, for its state to be read.
export function focusIn(row, act) {
    const found = buttonIn(row, act);
    row.awaits = act;
    row.tabIndex = -1;
    (found ?? row).focus();
}

const buttonIn = (row, act) =>
    [...row.querySelectorAll("button")].find(each => each.dataset.act === act);

// Focus the title of a section, where what had the focus is gone.
export function focusTitle(section) {
    const title = section.querySelector("h2");
    title.tabIndex = -1;
    title.focus();
}

// A table below the title of a section. A column has a title and a function from an item to parts.
export class Table {
    constructor(section, columns, key) {
        this.section = section;
        this.columns = columns;
        this.key = key;
        this.rows = new Map();
        // The roles, for a narrow page shows rows as blocks, and a browser forgets then what they are.
        const titles = columns.map(each =>
            element("th", { scope: "col", role: "columnheader" }, each.title));
        this.body = element("tbody", { role: "rowgroup" });
        this.table = element("table", { role: "table", "aria-labelledby": `${section.id}-title` },
            element("thead", { role: "rowgroup" }, element("tr", { role: "row" }, ...titles)),
            this.body);
        this.note = element("div", { class: "note" });
        section.append(this.table, this.note);
    }

    // Show `items`; below them, or in their place, the parts of `note`.
    show(items, note = []) {
        const left = new Map(this.rows);
        let at = this.body.firstElementChild;
        for (const item of items) {
            const key = this.key(item);
            const shown = this.rows.get(key) ?? this._row(key);
            left.delete(key);
            this.columns.forEach((column, number) =>
                show(shown.children[number].firstElementChild, column.parts(item)));
            if (shown === at)
                at = at.nextElementSibling;
            else
                this.body.insertBefore(shown, at);
        }
        for (const [key, gone] of left) {
            this.rows.delete(key);
            if (gone.contains(document.activeElement))
                focusTitle(this.section);
            gone.remove();
        }
        this.table.hidden = items.length === 0;
        show(this.note, note);
    }

    _row(key) {
        const cells = this.columns.map((column, number) => {
            const how = number === 0 ? { scope: "row", role: "rowheader" } : { role: "cell" };
            return element(number === 0 ? "th" : "td", { ...how, "data-title": column.title },
                element("div", { class: "cell" }));
        });
        const made = element("tr", { role: "row" }, ...cells);
        this.rows.set(key, made);
        return made;
    }
}
