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
source = getImageID();
best = newArray(pixels);
label = newArray(pixels);
doubt = newArray(pixels);
for (k = 0; k < classes; k++) {
    selectImage(source);
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

// objects: connected regions of the mask, with area and mean uncertainty
newImage("uncertainty", "32-bit black", width, height, 1);
for (i = 0; i < pixels; i++) setPixel(i % width, floor(i / width), doubt[i]);
newImage("objects", "8-bit black", width, height, 1);
for (i = 0; i < pixels; i++) setPixel(i % width, floor(i / width), 255 * (label[i] > 0));
setThreshold(255, 255);
run("Set Measurements...", "area centroid mean redirect=uncertainty decimal=6");
run("Analyze Particles...", "size=0-Infinity display clear");
