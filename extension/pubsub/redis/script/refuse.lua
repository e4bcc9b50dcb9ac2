-- Gives up a message that nobody here has taken, and offers it to the others.
-- KEYS: the claim. ARGV: what the claim says, channel, payload.
if redis.call('GET', KEYS[1]) == ARGV[1] then
	redis.call('DEL', KEYS[1])
	redis.call('PUBLISH', ARGV[2], ARGV[3])
end
return 0
