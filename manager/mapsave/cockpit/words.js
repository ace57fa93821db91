// Sizes, durations and times as people read them: as the commands print them.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function size(bytes) {
    let value = bytes;
    let unit = 0;
    while (Math.abs(value) >= 1024 && unit < UNITS.length - 1) {
        value /= 1024;
        unit += 1;
    }
    return `${unit === 0 ? value.toFixed(0) : value.toFixed(1)} ${UNITS[unit]}`;
}

export function duration(seconds) {
    if (seconds < 0.9995)
        return `${(seconds * 1000).toFixed(0)} ms`;
    if (seconds < 59.995)
        return `${Number(seconds.toFixed(2))} s`;
    const whole = Math.round(seconds);
    const minutes = Math.floor(whole / 60);
    if (minutes < 60)
        return both(minutes, "m", whole % 60, "s");
    const hours = Math.floor(minutes / 60);
    return hours < 48 ? both(hours, "h", minutes % 60, "m") : both(Math.floor(hours / 24), "d", hours % 24, "h");
}

const both = (number, unit, rest, smaller) =>
    `${number} ${unit}${rest ? ` ${two(rest)} ${smaller}` : ""}`;

// The seconds from one time of the service to another.
export const between = (begun, ended) => (new Date(ended) - new Date(begun)) / 1000;

// A part for dom.js: a moment, by RFC 3339.
export function moment(when) {
    if (when === null || when === undefined)
        return "";
    const date = new Date(when);
    return { time: date.toISOString(), text: local(date), title: `${local(date)} ${offset(date)}` };
}

function local(date) {
    const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
    return `${day} ${two(date.getHours())}:${two(date.getMinutes())}`;
}

function offset(date) {
    const minutes = -date.getTimezoneOffset();
    const whole = Math.abs(minutes);
    return `${minutes < 0 ? "-" : "+"}${two(Math.floor(whole / 60))}:${two(whole % 60)}`;
}

export function base(path) {
    return path === null ? null : path.slice(path.lastIndexOf("/") + 1);
}

const two = number => String(number).padStart(2, "0");
