// Fiji, ImageJ: predict the current image with a df2serve service, and show the mask.
// In Fiji's script editor choose the language Groovy and run it.
//
// The image is sent as it is, as TIFF, with its channels; of a stack, the whole stack, so that a
// series over time or depth is to be reduced to a plane first.

#@ String (label="Service", value="http://127.0.0.1:3000") service
#@ String (label="Model", value="") model
#@ String (label="Output", choices={"mask", "uncertainty", "probabilities"}) output
#@ String (label="API key", style="password", required=false, persist=false) key

import groovy.json.JsonSlurper
import ij.IJ
import ij.io.FileSaver

import java.nio.file.Files

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

def image = IJ.getImage()
if (!model) {
    model = new JsonSlurper().parse(answer(open("$service/v1/models", key)).inputStream).default
}
def name = URLEncoder.encode(image.title, "UTF-8")
def connection = open("$service/v1/models/$model/predict?outputs=$output&name=$name", key)
connection.requestMethod = "POST"
connection.doOutput = true
connection.setRequestProperty("Content-Type", "image/tiff")
connection.setRequestProperty("Prefer", "wait=300")
connection.outputStream.withStream { it << new FileSaver(image).serialize() }
answer(connection)
if (connection.responseCode == 202) {
    throw new IOException("The image takes longer; its result will be at $service" +
        connection.getHeaderField("Location"))
}

def file = Files.createTempFile("df2serve-", ".tif")
try {
    connection.inputStream.withStream { from -> file.withOutputStream { it << from } }
    def result = IJ.openImage(file.toString())
    result.title = "$output of ${image.title}"
    result.copyScale(image)
    result.show()
    if (output == "mask") result.resetDisplayRange()
} finally {
    Files.delete(file)
}
def u = connection.getHeaderField("DF2-Uncertainty")
def review = connection.getHeaderField("DF2-Needs-Review") == "true"
IJ.log("${image.title}: U = ${u ?: 'undefined'}${review ? ', needs review' : ''}")
