// Touching objects, split by a watershed from markers.
//
// Markers are the places that lie deepest inside of the mask: maxima of the distance to its edge that rise
// by more than the tolerance, in pixels, above the passes to their neighbors. Models that have learned the
// distance to the boundary of objects give it as a slice, which is taken instead. Open the result of the model
// and run this macro: a stack whose first @CLASSES@ slices are the class probabilities, background first.
classes = @CLASSES@;
learned = @DISTANCE@; // the slice of the learned distance, from 0 to 1; 0 where there is none
tolerance = 1;

width = getWidth();
height = getHeight();
pixels = width * height;
if (nSlices < classes) exit("expected " + classes + " class probabilities, got " + nSlices + " slices");
background = newArray(pixels);
inside = newArray(pixels);
for (k = 0; k < classes; k++) {
    setSlice(k + 1);
    for (i = 0; i < pixels; i++) {
        p = getPixel(i % width, floor(i / width));
        if (k == 0) background[i] = p;
        else if (p > background[i]) inside[i] = 255;
    }
}
maps = getImageID();
newImage("mask", "8-bit black", width, height, 1);
for (i = 0; i < pixels; i++) setPixel(i % width, floor(i / width), inside[i]);
setOption("BlackBackground", true);
if (learned > 0) {
    tolerance = @DEPTH@;
    selectImage(maps);
    setSlice(learned);
    run("Duplicate...", "title=distance");
    for (i = 0; i < pixels; i++) if (inside[i] == 0) setPixel(i % width, floor(i / width), 0);
} else {
    run("Options...", "iterations=1 count=1 black edm=32-bit");
    run("Distance Map");
}
run("Find Maxima...", "prominence=" + tolerance + " output=[Segmented Particles]");
segments = getTitle();
imageCalculator("AND create", "mask", segments);
rename("objects");
setThreshold(255, 255);
run("Set Measurements...", "area centroid decimal=6");
run("Analyze Particles...", "size=0-Infinity show=[Count Masks] display clear");
