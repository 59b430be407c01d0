// QuPath: predict the selected region with a df2serve service, and add the mask as annotations.
// Select a rectangle (or nothing: the whole image), then run this in the script editor.

import groovy.json.JsonSlurper
import ij.IJ
import ij.io.FileSaver
import qupath.imagej.tools.IJTools
import qupath.lib.analysis.images.ContourTracing
import qupath.lib.analysis.images.SimpleImages
import qupath.lib.objects.PathObjects
import qupath.lib.regions.RegionRequest

import java.nio.file.Files

def service = "http://127.0.0.1:3000"
def model = ""       // the default one
def downsample = 1.0 // pixels of the image per pixel that is sent, on each side
def key = System.getenv("DF2SERVE_API_KEY")

def open(String address, String key) {
    def connection = new URL(address).openConnection()
    connection.connectTimeout = 10_000
    connection.readTimeout = 300_000
    if (key) connection.setRequestProperty("X-API-Key", key)
    return connection
}

def answer(connection) {
    if (connection.responseCode >= 400) {
        def problem = new JsonSlurper().parse(connection.errorStream)
        throw new IOException("${problem.code}: ${problem.detail}")
    }
    return connection
}

def server = getCurrentServer()
def roi = getSelectedROI()
def request = roi == null ? RegionRequest.createInstance(server, downsample) :
    RegionRequest.createInstance(server.path, downsample, roi)
def facts = new JsonSlurper().parse(answer(open("$service/v1/models", key)).inputStream)
if (!model) model = facts.default
def classes = facts.models.find { it.name == model }.classes*.name

def connection = open("$service/v1/models/$model/predict", key)
connection.requestMethod = "POST"
connection.doOutput = true
connection.setRequestProperty("Content-Type", "image/tiff")
connection.setRequestProperty("Prefer", "wait=300")
def pixels = IJTools.convertToImagePlus(server, request).image
connection.outputStream.withStream { it << new FileSaver(pixels).serialize() }
answer(connection)
if (connection.responseCode == 202) {
    throw new IOException("The region takes longer; its result will be at $service" +
        connection.getHeaderField("Location"))
}

def file = Files.createTempFile("df2serve-", ".tif")
def mask
try {
    connection.inputStream.withStream { from -> file.withOutputStream { it << from } }
    mask = IJ.openImage(file.toString()).processor
} finally {
    Files.delete(file)
}
def values = SimpleImages.createFloatImage(mask.convertToFloatProcessor().pixels as float[],
    mask.width, mask.height)
classes.eachWithIndex { name, value ->
    if (value == 0) return
    def found = ContourTracing.createTracedGeometry(values, value, value, request)
    if (found == null || found.isEmpty()) return
    def annotation = PathObjects.createAnnotationObject(
        qupath.lib.roi.GeometryTools.geometryToROI(found, request.imagePlane), getPathClass(name))
    addObject(annotation)
}
println "U = ${connection.getHeaderField('DF2-Uncertainty') ?: 'undefined'}, needs review: " +
    (connection.getHeaderField("DF2-Needs-Review") ?: "unknown")
