-- KEYS: the topic's members. ARGV: channel, member, node, info, what to publish, 1 if the member has joined before and is to be put
-- back. Returns 0 if there is such a member.
local value = ARGV[3] .. ARGV[4]
if redis.call('HSETNX', KEYS[1], ARGV[2], value) == 1 then
	redis.call('PUBLISH', ARGV[1], ARGV[5])
	return 1
end
if ARGV[6] ~= '1' then return 0 end
redis.call('HSET', KEYS[1], ARGV[2], value)
return 1
