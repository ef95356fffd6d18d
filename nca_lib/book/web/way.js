// What draws images call by call. No DOM.

// A way is a generator: before each call of a network it yields { output }, which whoever drives it hands back, and between
// the calls the frames to be seen.
class Drawing {
  // The frames; the calls are answered at once.
  *sample(settings) {
    const way = this.way(settings, this.network);
    for (let step = way.next(); !step.done;) {
      if (step.value.output) step = way.next(step.value.output);
      else {
        yield step.value;
        step = way.next();
      }
    }
  }

  // The same, the calls by what `gpu()` gave, which answers later.
  async *sampleBy(gpu, settings) {
    const way = this.way(settings, gpu);
    for (let step = way.next(); !step.done;) {
      if (step.value.output) step = way.next(await step.value.output);
      else {
        yield step.value;
        step = way.next();
      }
    }
  }
}

// A way whose frames say which level of a cascade they are of; returns the last image.
function* ofLevel(way, level) {
  let image = null;
  for (let step = way.next(); !step.done;) {
    if (step.value.output) step = way.next(yield step.value);
    else {
      ({ image } = step.value);
      yield { ...step.value, level };
      step = way.next();
    }
  }
  return image;
}

export { Drawing, ofLevel };
