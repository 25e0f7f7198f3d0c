// Numbers and moments as people read them.

const UNITS = ["B", "KB", "MB", "GB", "TB"];

export function size(count) {
  if (count === null || count === undefined) {
    return "unknown";
  }
  let unit = 0;
  for (; count >= 1000 && unit < UNITS.length - 1; unit += 1) {
    count /= 1000;
  }
  return `${unit === 0 || count >= 100 ? Math.round(count) : count.toFixed(1)} ${UNITS[unit]}`;
}

export const rate = (count) => `${size(count)}/s`;

export function duration(seconds) {
  if (seconds === null || seconds === undefined) {
    return "";
  }
  const whole = Math.round(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(whole % 60)}` : `${minutes}:${two(whole % 60)}`;
}

// The same, with tenths where it is short.
export const took = (seconds) => (seconds < 10 ? `${seconds.toFixed(1)} s` : duration(seconds));

export const moment = (text) => (text ? new Date(text).toLocaleString() : "");
