// Score U of an image, and the objects in it with their uncertainty.
//
// U is the mean uncertainty over the predicted foreground (Griebel et al. 2023, eq. 5): how much the whole
// result is to be doubted. Uncertainty and mask are computed from the class probabilities, so that U does
// not depend on how the image was cut into tiles. Open the result of the model and run this macro: a stack
// whose first @CLASSES@ slices are the class probabilities, background first.
classes = @CLASSES@;
factor = @FACTOR@; // what the sum over the classes of p (1 - p) is multiplied by, eq. 4

width = getWidth();
height = getHeight();
pixels = width * height;
if (nSlices < classes) exit("expected " + classes + " class probabilities, got " + nSlices + " slices");
getPixelSize(unit, pixelWidth, pixelHeight);
calibrated = true;
if (unit == "pixel" || unit == "pixels") calibrated = false;
best = newArray(pixels);
label = newArray(pixels);
doubt = newArray(pixels);
for (k = 0; k < classes; k++) {
    setSlice(k + 1);
    for (i = 0; i < pixels; i++) {
        p = getPixel(i % width, floor(i / width));
        doubt[i] += factor * p * (1 - p);
        if (k == 0 || p > best[i]) {
            best[i] = p;
            label[i] = k;
        }
    }
}
sum = 0;
foreground = 0;
largest = 0;
for (i = 0; i < pixels; i++) {
    largest = maxOf(largest, doubt[i]);
    if (label[i] > 0) {
        foreground++;
        sum += doubt[i];
    }
}
// a prediction without foreground gets the largest value of the map
score = largest;
if (foreground > 0) score = sum / foreground;
print("U\t" + d2s(score, 6));
print("foreground pixels\t" + foreground);

// objects: pixels of one class that touch by an edge, as in the tables of df2serve
setBatchMode(true);
newImage("objects", "32-bit black", width, height, 1);
for (i = 0; i < pixels; i++) setPixel(i % width, floor(i / width), -label[i]);
objects = 0;
for (k = 1; k < classes; k++) {
    for (i = 0; i < pixels; i++) {
        if (getPixel(i % width, floor(i / width)) == -k) {
            objects++;
            setColor(objects);
            floodFill(i % width, floor(i / width));
        }
    }
}
area = newArray(objects + 1);
column = newArray(objects + 1);
row = newArray(objects + 1);
mean = newArray(objects + 1);
class = newArray(objects + 1);
for (i = 0; i < pixels; i++) {
    n = getPixel(i % width, floor(i / width));
    area[n]++;
    column[n] += i % width;
    row[n] += floor(i / width);
    mean[n] += doubt[i];
    class[n] = label[i];
}
run("Set Measurements...", "decimal=6");
run("Clear Results");
for (n = 1; n <= objects; n++) {
    setResult("Object", n - 1, n);
    setResult("Class", n - 1, class[n]);
    setResult("Area_px", n - 1, area[n]);
    if (calibrated) setResult("Area_" + unit + "2", n - 1, area[n] * pixelWidth * pixelHeight);
    setResult("Column", n - 1, column[n] / area[n]);
    setResult("Row", n - 1, row[n] / area[n]);
    setResult("U", n - 1, mean[n] / area[n]);
}
updateResults();
setMinAndMax(0, objects);
newImage("uncertainty", "32-bit black", width, height, 1);
for (i = 0; i < pixels; i++) setPixel(i % width, floor(i / width), doubt[i]);
resetMinAndMax();
setBatchMode("exit and display");
