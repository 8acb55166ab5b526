package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"image"
	_ "image/gif"  // to check their headers
	_ "image/jpeg" // "
	_ "image/png"  // "
	"path"
	"strings"

	"github.com/bailey-platform/bailey/tool"
)

// What the model can be shown. The sizes are those of the public toolset, the
// side that of the Messages API.
const (
	imageMax  = 5 << 20  // bytes
	pdfMax    = 20 << 20 // bytes
	pixelsMax = 8000     // of either side
)

// media are the files that are shown rather than read, by their extension.
var media = map[string]string{
	".png":  "image/png",
	".jpg":  "image/jpeg",
	".jpeg": "image/jpeg",
	".gif":  "image/gif",
	".webp": "image/webp",
	".pdf":  "application/pdf",
}

// reader is the tool `read`: of a whole image or PDF file it makes a block that the
// model can look at.
func (p places) reader() runner {
	asText := plain(p.readText)
	// One large file at a time, as each takes several times its size in memory.
	turn := make(chan struct{}, 1)

	return func(ctx context.Context, call tool.Call) tool.Result {
		var in struct {
			FilePath  text            `json:"file_path"`
			ViewRange json.RawMessage `json:"view_range"`
		}
		if decode(call.Input, &in) != nil || len(in.ViewRange) > 0 {
			return asText(ctx, call)
		}
		name := string(in.FilePath)
		mediaType, ok := media[strings.ToLower(path.Ext(name))]
		if !ok {
			return asText(ctx, call)
		}
		select {
		case turn <- struct{}{}:
			defer func() { <-turn }()
		case <-ctx.Done():
			return cut(ctx, call)
		}
		data, err := p.readWhole("read", name, pdfMax)
		if err != nil {
			return tool.ErrorResult(err.Error())
		}
		// The name may mislead: a picture of another kind is shown as what it is,
		// and what is no picture at all is text.
		found := sniff(data)
		if found != mediaType && !(isImage(found) && isImage(mediaType)) {
			return asText(ctx, call)
		}
		if err := check(found, data); err != nil {
			return tool.ErrorResult(fmt.Sprintf("read: %s %v", name, err))
		}
		block, ok := tool.Media(found, data)
		if !ok {
			return asText(ctx, call)
		}
		return tool.Result{Content: []json.RawMessage{block}}
	}
}

// sniff is the media type of what can be shown, by how it begins, or "".
func sniff(data []byte) string {
	for _, kind := range []struct{ head, mediaType string }{
		{"\x89PNG\r\n\x1a\n", "image/png"},
		{"\xff\xd8\xff", "image/jpeg"},
		{"GIF87a", "image/gif"},
		{"GIF89a", "image/gif"},
		{"%PDF-", "application/pdf"},
	} {
		if bytes.HasPrefix(data, []byte(kind.head)) {
			return kind.mediaType
		}
	}
	if len(data) >= 14 && string(data[:4]) == "RIFF" && string(data[8:14]) == "WEBPVP" {
		return "image/webp"
	}
	return ""
}

func isImage(mediaType string) bool { return strings.HasPrefix(mediaType, "image/") }

// check refuses what a model endpoint would: an image it cannot take, once in the
// conversation, makes it refuse every later turn.
func check(mediaType string, data []byte) error {
	if !isImage(mediaType) {
		return nil
	}
	if len(data) > imageMax {
		return fmt.Errorf("is %d bytes, exceeds %d-byte limit for images", len(data), imageMax)
	}
	width, height, err := size(mediaType, data)
	if err != nil {
		return fmt.Errorf("is damaged: %w", err)
	}
	if width < 1 || height < 1 || width > pixelsMax || height > pixelsMax {
		return fmt.Errorf("is %d by %d pixels, exceeds %d-pixel limit", width, height, pixelsMax)
	}
	return nil
}

func size(mediaType string, data []byte) (width, height int, err error) {
	if mediaType == "image/webp" {
		return webpSize(data)
	}
	config, _, err := image.DecodeConfig(bytes.NewReader(data))
	return config.Width, config.Height, err
}

// webpSize reads the size from the header of a WebP file, of whichever of its
// three layouts (RFC 9649).
func webpSize(data []byte) (width, height int, err error) {
	if len(data) < 30 {
		return 0, 0, errors.New("it ends in its header")
	}
	b := data[20:] // the first chunk's contents
	switch string(data[12:16]) {
	case "VP8 ":
		return (int(b[6]) | int(b[7])<<8) & 0x3fff, (int(b[8]) | int(b[9])<<8) & 0x3fff, nil
	case "VP8L":
		bits := int(b[1]) | int(b[2])<<8 | int(b[3])<<16 | int(b[4])<<24
		return bits&0x3fff + 1, bits>>14&0x3fff + 1, nil
	case "VP8X":
		return int(b[4]) | int(b[5])<<8 | int(b[6])<<16 + 1, int(b[7]) | int(b[8])<<8 | int(b[9])<<16 + 1, nil
	default:
		return 0, 0, errors.New("it has an unknown header")
	}
}
