package arpc

import (
	"context"

	"github.com/arpc-go/arpc/codec"
)

// callOptions is what a context says about the calls, notifications and streams that are begun with it. It never changes.
type callOptions struct {
	pairs      metadataBlock // the user's
	pairsErr   error         // why they cannot be sent
	block      metadataBlock // what is sent: with those of the framework
	err        error         // why it cannot be sent
	response   *Metadata
	idempotent bool
	codec      codec.Codec // nil for the client's
	codecName  string
}

type callOptionsKey struct{}

var noCallOptions callOptions

// optionsOf returns what ctx, which may be nil, says.
func optionsOf(ctx context.Context) *callOptions {
	if ctx == nil || ctx == context.Background() {
		return &noCallOptions
	}
	if o, ok := ctx.Value(callOptionsKey{}).(*callOptions); ok {
		return o
	}
	return &noCallOptions
}

// optionsContext is a context with options.
type optionsContext struct {
	context.Context
	options callOptions
}

// Value implements context.Context.
func (c *optionsContext) Value(key any) any {
	if key == (callOptionsKey{}) {
		return &c.options
	}
	return c.Context.Value(key)
}

// withOptions returns a context with changed options.
func withOptions(ctx context.Context, change func(*callOptions)) context.Context {
	c := &optionsContext{ctx, *optionsOf(ctx)}
	o := &c.options
	change(o)
	o.block, o.err = o.pairs, o.pairsErr
	if o.codecName != "" && o.err == nil {
		o.block, o.err = appendPair(o.pairs[:len(o.pairs):len(o.pairs)], codecKey, o.codecName)
	}
	return c
}

// WithMetadata returns a context whose calls, notifications and streams carry md, instead of what ctx may have had. It
// is encoded once, here; md may be changed afterwards. A pair that cannot be sent is an error of the call; keys that begin with
// "arpc." are reserved.
func WithMetadata(ctx context.Context, md Metadata) context.Context {
	return withOptions(ctx, func(o *callOptions) { o.pairs, o.pairsErr = appendMetadata(nil, md) })
}

// AddMetadata returns a context that has a pair more than ctx; of equal keys the last counts. See WithMetadata.
func AddMetadata(ctx context.Context, key, value string) context.Context {
	return withOptions(ctx, func(o *callOptions) {
		if o.pairsErr == nil {
			o.pairs, o.pairsErr = appendUserPair(o.pairs[:len(o.pairs):len(o.pairs)], key, value)
		}
	})
}

// WithResponseMetadata returns a context for one call that stores the metadata of its answer in md, nil if there is none.
func WithResponseMetadata(ctx context.Context, md *Metadata) context.Context {
	return withOptions(ctx, func(o *callOptions) { o.response = md })
}

// Attempt returns a context for one of several attempts at the call of ctx, for Callers that make them at the same time: what
// WithResponseMetadata is to store is kept aside, and commit stores it.
func Attempt(ctx context.Context) (attempt context.Context, commit func()) {
	response := optionsOf(ctx).response
	if response == nil {
		return ctx, func() {}
	}
	own := new(Metadata)
	return WithResponseMetadata(ctx, own), func() { *response = *own }
}

// WithIdempotent returns a context whose calls may be carried out twice without harm, for Callers that try again. Typed methods
// with the trait Idempotent call such Callers with it.
func WithIdempotent(ctx context.Context) context.Context {
	return withOptions(ctx, func(o *callOptions) { o.idempotent = true })
}

// IsIdempotent reports whether WithIdempotent has made ctx.
func IsIdempotent(ctx context.Context) bool { return optionsOf(ctx).idempotent }

// codecKey is the key of the metadata pair that names the codec of a message which has another than its connection.
const codecKey = reservedPrefix + "codec"

// UseCodec returns a context whose calls, notifications and streams, and what answers them, are encoded with c instead of the
// Client's Codec, but for details of errors. Both ends must have it registered, see codec.Register, before they connect; if the peer has not, or knows version 1 of the protocol only,
// they fail with CodeFailedPrecondition. The handler need not know: Bind and Write follow. A nil c is the Client's Codec again.
func UseCodec(ctx context.Context, c codec.Named) context.Context {
	return withOptions(ctx, func(o *callOptions) {
		o.codec, o.codecName = nil, ""
		if c != nil {
			o.codec, o.codecName = c, c.Name()
		}
	})
}

var errCodec = &Error{Code: CodeFailedPrecondition, Message: "the peer does not know the codec of the call"}

// codecOf returns the codec of a received message with metadata, own if it does not name one, and an error if nobody knows it.
func codecOf(block metadataBlock, own codec.Codec) (codec.Codec, error) {
	name, ok := pairIn(block, codecKey)
	if !ok {
		return own, nil
	}
	if n, ok := own.(codec.Named); ok && n.Name() == string(name) {
		return own, nil // HELLO has its name, registered or not
	}
	if c := codec.Lookup(string(name)); c != nil {
		return c, nil
	}
	return own, &Error{Code: CodeInvalidArgument, Message: "the codec of the message is not registered"}
}
