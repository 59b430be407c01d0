// What scores mean, in sentences, and the order that they make.
import { count, percent, score } from "./dom.js";

const MOSTLY_DISAGREEMENT = 0.5;
const HARDLY_DISAGREEMENT = 0.1;
const UNDEFINED = {
  no_valid_pixels: "No pixel of it counts, so that nothing can be scored.",
  empty_prediction: "Nothing was found in it, and U is undefined then under the settings in use.",
};
const ORIGINS = { held_out: "held out of the training", out_of_fold: "of the training" };

export const sentence = (text) => `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

/** Whether a result is to be looked at: "review", "fine", or "open" where there is no threshold. */
export const toneOf = ({ needs_review: needed }) => (needed === null ? "open" : needed ? "review" : "fine");

export const TITLES = {
  review: "Look at this result before you use it",
  fine: "No need for review",
  open: "No threshold: judge for yourself",
};
export const BADGES = { review: "review", fine: "fine", open: "no threshold" };

/** Why an image stands where it stands, in one sentence. */
export function reason(quality) {
  const { uncertainty_score: u, undefined_reason: why, empty_prediction: isEmpty, u_epistemic: own } = quality;
  if (u === null) return UNDEFINED[why] ?? "U is undefined.";
  const parts = [];
  if (isEmpty) parts.push("nothing was found");
  if (quality.needs_review) parts.push(`U is at or above the threshold of ${score(quality.u_min)}`);
  else if (quality.percentile !== null) parts.push(`more doubtful than ${percent(quality.percentile / 100)} of the references`);
  if (!isEmpty && u && own / u >= MOSTLY_DISAGREEMENT) parts.push("the networks disagree with each other");
  parts.push(...quality.warnings);
  return parts.map(sentence).join(" ");
}

/** Everything that the scores say, the most important first. */
export function explain({ quality, largest_uncertainty: largest }, model) {
  const { uncertainty_score: u, u_epistemic: own } = quality;
  const told = [];
  if (u === null) told.push(UNDEFINED[quality.undefined_reason] ?? "U is undefined.");
  else if (quality.empty_prediction) {
    told.push(`Nothing was found in it; its most doubtful pixel has an uncertainty of ${score(u)} of at most ${largest.toFixed(2)}.`);
  } else told.push(`What was found is uncertain by ${score(u)} on average, of at most ${largest.toFixed(2)}.`);
  if (u !== null && model?.references) {
    const { scores, source } = model.references;
    const below = scores.filter((other) => other < u).length;
    const place = below === scores.length ? `all ${below}` : `${below || "none"} of ${scores.length}`;
    told.push(`That is more than ${place} reference images have, which were ${ORIGINS[source]}.`);
  }
  if (u !== null && quality.u_min !== null) {
    const side = u >= quality.u_min ? "At or above" : "Below";
    told.push(`${side} the threshold of ${score(quality.u_min)}. ${sentence(model?.threshold?.meaning ?? "")}`.trim());
  } else if (quality.u_min === null) told.push("The model carries no threshold that says from where on results are to be reviewed.");
  if (u && own !== null && !quality.empty_prediction) {
    const share = own / u;
    if (share >= MOSTLY_DISAGREEMENT) {
      told.push(`Most of the doubt, ${percent(share)}, is disagreement of networks and views, as in images unlike those of the training.`);
    } else if (share <= HARDLY_DISAGREEMENT) {
      told.push(`Networks and views agree with each other (${percent(share)} is disagreement): the image itself leaves room for doubt, as at blurred edges.`);
    }
  }
  told.push(...quality.warnings.map(sentence));
  return told;
}

/** What a model says of itself. */
export function modelFacts(model) {
  const size = model.pixel_size_um;
  return [
    ["Images", `${count(model.channels.length, "channel")}: ${model.channels.join(", ")}`],
    ["Pixel size", size ? `${size.y_um} × ${size.x_um} µm` : "not stated"],
    ["Networks", String(model.members)],
    ["Threshold of U", model.threshold ? score(model.threshold.value) : "none"],
    ["References", model.references ? count(model.references.scores.length, "image") : "none"],
    ["License", model.license ?? "not stated"],
  ];
}

/** Order images like `df2serve rank`: without a score first, then by decreasing U. */
export function ranked(items) {
  const key = ({ index, quality: { uncertainty_score: u, undefined_reason: why, empty_prediction: isEmpty } }) =>
    [why !== "no_valid_pixels", u !== null, -(u ?? 0), !isEmpty, index];
  const good = items.filter(({ quality }) => quality !== null).map((item) => ({ item, key: key(item) }));
  good.sort((a, b) => {
    const place = a.key.findIndex((value, index) => value !== b.key[index]);
    return place < 0 ? 0 : a.key[place] - b.key[place];
  });
  return good.map(({ item }) => item);
}
